"""Primitive actions as skills of one step: what methods without skills act with, on the same code."""

import math

import torch
from torch import Tensor

from training.config import TrainingConfig
from training.networks.blocks import StateFeatures
from training.networks.skill_model import SkillModel

TARGET_KL = 1 + math.log(2)
"""KL to the prior, in nats for each dimension of an action: an entropy of -1 nat, the usual target of soft actor-critic's temperature
(Haarnoja et al. 2018, appendix D), seen from actions that are uniform between their limits, as they nearly are under N(0, I)."""

FINETUNING_COEFFICIENT_RATE = 3e-3
"""Adam's, for the KL coefficient: it begins as that of a skill, many times too large for a step, and gets few gradient steps."""


def primitive_config(config: TrainingConfig, action_dim: int) -> TrainingConfig:
    """The configuration with skills of one step, as wide as an action.

    The discount is taken to the step, so that returns are those of the methods with skills; replays hold as many episodes as theirs. KL
    coefficients are tuned as soft actor-critic's temperature is, down as well as up, until the policy keeps `TARGET_KL` for each
    dimension of its actions.
    """
    horizon, target = config.skills.horizon, TARGET_KL * action_dim
    content = config.model_dump()
    content["skills"] |= {"horizon": 1, "skill_dim": action_dim, "decoded_steps": 1, "decoder_hidden": (), "prior_hidden": ()}
    for section, buffer in (("meta", "buffer_per_task"), ("finetuning", "buffer")):
        content[section]["discount"] **= 1 / horizon
        content[section][buffer] *= horizon
        content[section]["kl_clip"] = 4 * target
        content[section]["coefficient_may_fall"] = True
    for kind in ("prior", "posterior"):
        content["meta"][f"policy_{kind}_target"] = target
    content["finetuning"] |= {"kl_target": target, "coefficient_learning_rate": FINETUNING_COEFFICIENT_RATE}
    return TrainingConfig.model_validate(content)


@torch.no_grad()
def primitive_skills(config: TrainingConfig, features: StateFeatures, action_low: Tensor, action_high: Tensor) -> SkillModel:
    """A skill model whose skill is the action before its tanh, and whose prior is N(0, I) in every state.

    KL to that prior takes the place of the entropy of soft actor-critic. The networks see states through the normaliser of ``features``.
    """
    skills = SkillModel(
        config.features, config.skills, state_mean=features.mean, state_std=features.std, action_low=action_low, action_high=action_high
    )
    for network in (skills.decoder.net, skills.prior.net):
        for parameter in network.parameters():
            parameter.zero_()
    skills.decoder.net[0].weight[:, -len(action_low) :] = torch.eye(len(action_low))
    return skills.eval()
