"""A bundle of small untrained networks, for tests: S=4, A=2, Z=3, E=2, H=5, all different so that a swapped axis shows."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.belief import TrainedBelief, TrainedNovelty, untrained_dynamics
from training.config import BeliefConfig, CollectConfig, DomainConfig, FinetuningConfig, NetworkConfig, SkillConfig, TrainingConfig
from training.contract.bundle import Bundle, Manifest, write_bundle
from training.contract.context import ContextLayout
from training.contract.envelope import Envelope
from training.contract.exploration import Exploration
from training.contract.spec import REWARD_DECODER, SKILL_DYNAMICS, ModelSpec, VectorSpec
from training.export import export_bundle
from training.meta_learner import MetaNetworks
from training.networks.skill_model import SkillModel

S, A, Z, E, H = 4, 2, 3, 2, 5

TINY_SPEC = ModelSpec(
    env_id="Tiny-v0",
    observation=VectorSpec(names=("x", "y", "vx", "vy"), units=("m", "m", "m/s", "m/s"), low=(-9.0,) * S, high=(9.0,) * S),
    action=VectorSpec(names=("ax", "ay"), units=("N", "N"), low=(-1.0,) * A, high=(1.0,) * A),
    skill_dim=Z,
    skill_horizon=H,
    task_embedding_dim=E,
    max_context=32,
    episode_steps=30,
    control_period_s=0.1,
)


def tiny_config(**finetuning: float) -> TrainingConfig:
    """The smallest networks that the training code makes, and short fine-tuning."""
    options = {
        "batch": 16,
        "warm_start_updates": 12,
        "updates_per_episode": 4,
        "buffer": 400,
        "kl_limit": 200.0,
        "infer_again": True,
        "detours": True,
        **finetuning,
    }
    return TrainingConfig(
        domain=DomainConfig(name="tiny", env_id="Tiny-v0", train_tasks="train", test_tasks="test"),
        collect=CollectConfig(dataset="tiny/data-v0"),
        skills=SkillConfig(horizon=H, skill_dim=Z, encoder_hidden=(8,), decoder_hidden=(8,), prior_hidden=(8,)),
        networks=NetworkConfig(
            task_embedding_dim=E,
            policy_hidden=(8,),
            critic_hidden=(8,),
            encoder="product_of_gaussians",  # quick to export; and more context always narrows its posterior
            encoder_width=8,
            max_context=32,
        ),
        finetuning=FinetuningConfig.model_validate(options),
        belief=BeliefConfig(particles=7, hidden=(6,), dynamics_updates=5, dynamics_hidden=(8,)),
    )


def make_tiny_bundle(path: Path, *, seed: int = 0, spec: ModelSpec = TINY_SPEC, **finetuning: float) -> Bundle:
    """Export untrained networks as a bundle at ``path``; ``finetuning`` overrides entries of its fine-tuning configuration."""
    torch.manual_seed(seed)
    config = tiny_config(**finetuning)
    skills = SkillModel(
        config.features,
        config.skills,
        state_mean=torch.zeros(spec.observation.dim),
        state_std=torch.ones(spec.observation.dim),
        action_low=torch.tensor(spec.action.low),
        action_high=torch.tensor(spec.action.high),
    )
    networks = MetaNetworks.fresh(skills, ContextLayout(spec.observation.dim, Z), config.networks)
    with torch.no_grad():  # an untrained policy is the skill prior; here the task embedding must show in the actions
        networks.policy.net[-1].weight.mul_(100)
    return export_bundle(
        path, config=config, networks=networks, coefficient=3e-4, spec=spec, metrics={}, command="tests", belief=_belief(config, networks)
    )


@torch.no_grad()
def _belief(config: TrainingConfig, networks: MetaNetworks) -> TrainedBelief:
    """Particles at random, and a decoder of which some are ruled out soon: its answers are far from even."""
    places = torch.eye(len(networks.skills.features.mean))[:2]  # where it is, not how fast
    dynamics = untrained_dynamics(config, networks)
    dynamics.net[-1].weight.mul_(20)  # skills lead somewhere
    belief = replace(TrainedBelief.untrained(config, networks), novelty=TrainedNovelty(places, dynamics.eval()))
    belief.particles.copy_(torch.randn(belief.particles.shape))
    belief.decoder.net[-1].weight.mul_(20)
    return belief


def with_finetuning(bundle: Bundle, path: Path, **finetuning: float) -> Bundle:
    """A copy of a bundle at ``path`` with other entries in its fine-tuning configuration."""
    return copied(bundle, path, finetuning={**bundle.manifest.finetuning, **finetuning})


def without_belief(bundle: Bundle, path: Path) -> Bundle:
    """A copy of a bundle at ``path`` that offers no belief, and with it no novelty."""
    return copied(bundle, path, leave_out=(REWARD_DECODER, SKILL_DYNAMICS), particles=None, places=None)


def exploring_by_novelty(bundle: Bundle, path: Path) -> Bundle:
    """A copy of a bundle at ``path`` whose sessions explore by novelty unless they say otherwise."""
    return copied(bundle, path, exploration=Exploration.NOVELTY)


def with_envelope(bundle: Bundle, path: Path, envelope: Envelope) -> Bundle:
    """A copy of a bundle at ``path`` that carries a safety envelope."""
    return copied(bundle, path, envelope=envelope)


def copied(bundle: Bundle, path: Path, leave_out: Collection[str] = (), **changed: Any) -> Bundle:
    """A copy of a bundle at ``path`` without some files or with other fields of the manifest."""
    manifest = bundle.manifest
    fields = {name: getattr(manifest, name) for name in Manifest.model_fields if name not in ("format_version", "files")}
    return write_bundle(path, {name: bundle.read(name) for name in manifest.files if name not in leave_out}, **fields | changed)
