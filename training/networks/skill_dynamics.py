"""Where skills lead: a model of the state after a skill (as in SkiMo: Shi et al. 2022, section 3.2, here in the state space itself)."""

import torch
from torch import Tensor, nn

from training.networks.blocks import mlp
from training.networks.skill_model import SkillPrior


class SkillDynamics(nn.Module):
    """Predicts the change of the state, in units of its standard deviation over the skills that it was trained on, ``change_std`` [S]."""

    change_std: Tensor

    def __init__(self, prior: SkillPrior, skill_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.prior = prior
        state_dim = len(prior.features.mean)
        self.net = mlp(prior.features.dim + skill_dim, hidden, state_dim)
        self.register_buffer("change_std", torch.ones(state_dim))

    def after(self, state: Tensor, skill: Tensor) -> Tensor:
        """State [..., S] and skill [..., Z] -> the state [..., S] that the skill leads to."""
        return state + self.change_std * self.net(torch.cat([self.prior.features(state), skill], -1))

    def forward(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """State [..., S] and noise [..., Z] -> the skill [..., Z] that the prior draws with it, and the state [..., S] that it leads to."""
        mean, std = self.prior(state)
        skill = mean + std * noise
        return skill, self.after(state, skill)
