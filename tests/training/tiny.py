"""Small sizes, all different so that a swapped axis shows: S=4 A=2 Z=3 E=2 H=5."""

from typing import Any

import torch

from training.config import TrainingConfig
from training.contract.context import ContextLayout
from training.contract.spec import ModelSpec, VectorSpec
from training.networks.skill_model import SkillModel

S, A, Z, E, H, MAX_CONTEXT, EPISODE_STEPS = 4, 2, 3, 2, 5, 12, 13
LAYOUT = ContextLayout(S, Z)

TINY_SPEC = ModelSpec(
    env_id="Tiny-v0",
    observation=VectorSpec(names=("x", "y", "vx", "vy"), units=("m", "m", "m/s", "m/s"), low=(-9.0,) * S, high=(9.0,) * S),
    action=VectorSpec(names=("ax", "ay"), units=("m", "m"), low=(-1.0, -0.5), high=(1.0, 0.5)),
    skill_dim=Z,
    skill_horizon=H,
    task_embedding_dim=E,
    max_context=MAX_CONTEXT,
    episode_steps=EPISODE_STEPS,
    control_period_s=0.1,
)


def tiny_config(**sections: Any) -> TrainingConfig:
    """A configuration of tiny networks; ``sections`` change entries, e.g. ``meta={"updates": 3}``."""
    content: dict[str, dict[str, Any]] = {
        "domain": {"name": "tiny", "env_id": "Tiny-v0", "train_tasks": "train", "test_tasks": "test"},
        "collect": {"dataset": "testing/tiny-v0"},
        "features": {"periodic_entries": (0, 1), "periods": (4.0, 2.0)},
        "skills": {
            "horizon": H,
            "skill_dim": Z,
            "encoder_hidden": (24,),
            "decoder_hidden": (20,),
            "prior_hidden": (16,),
            "batch": 64,
            "steps": 300,
        },
        "networks": {
            "task_embedding_dim": E,
            "policy_hidden": (18, 14),
            "critic_hidden": (22, 10),
            "encoder_width": 8,
            "encoder_heads": 4,
            "encoder_inducing_points": 6,
            "encoder_blocks": 1,
            "max_context": MAX_CONTEXT,
        },
        "meta": {"prior_tasks": 1, "posterior_tasks": 1, "batch_per_task": 32, "posterior_context": 12, "buffer_per_task": 400},
        "finetuning": {"batch": 32, "warm_start_updates": 6, "updates_per_episode": 3, "buffer": 60, "infer_again": True},
    }
    for name, changed in sections.items():
        content[name] = content.get(name, {}) | changed
    return TrainingConfig.model_validate(content)


def world_config(**sections: Any) -> TrainingConfig:
    """A configuration for `known_skills`."""
    return tiny_config(**{**sections, "skills": {"decoder_hidden": (), "prior_hidden": ()} | sections.get("skills", {})})


@torch.no_grad()
def known_skills(config: TrainingConfig) -> SkillModel:
    """Skills that need no training: a skill's first entry drives the first action, and the prior is N(0, I) in every state."""
    limits = {"action_low": torch.tensor(TINY_SPEC.action.low), "action_high": torch.tensor(TINY_SPEC.action.high)}
    skills = SkillModel(config.features, config.skills, state_mean=torch.zeros(S), state_std=torch.ones(S), **limits)
    for layer in (skills.decoder.net[0], skills.prior.net[0]):
        layer.weight.zero_(), layer.bias.zero_()
    skills.decoder.net[0].weight[0, -Z] = 2.0
    return skills
