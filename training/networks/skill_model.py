"""Skills: encoder q(z | s_1:H, a_1:H), closed-loop decoder pi(a | s, z) and prior p(z | s) (SPiRL, Pertsch et al. 2020, section 3)."""

import torch
from torch import Tensor, nn

from training.config import FeatureConfig, SkillConfig
from training.networks.blocks import StateFeatures, gaussian_from, mlp


class SkillEncoder(nn.Module):
    """q(z | s_1:H, a_1:H)."""

    def __init__(self, features: StateFeatures, action_dim: int, config: SkillConfig) -> None:
        super().__init__()
        self.features = features
        self.net = mlp(config.horizon * (features.dim + action_dim), config.encoder_hidden, 2 * config.skill_dim)

    def forward(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, H, S] and actions [B, H, A] of a window -> mean and standard deviation, [B, Z] each."""
        window = torch.cat([self.features(states), actions], -1)
        return gaussian_from(self.net(window.flatten(-2)))


class SkillDecoder(nn.Module):
    """pi(a | s, z): the low-level policy. Deterministic, inside the action limits by a tanh."""

    action_centre: Tensor
    action_scale: Tensor

    def __init__(self, features: StateFeatures, action_low: Tensor, action_high: Tensor, config: SkillConfig) -> None:
        super().__init__()
        self.features = features
        self.net = mlp(features.dim + config.skill_dim, config.decoder_hidden, len(action_low))
        self.register_buffer("action_centre", (action_high + action_low) / 2)
        self.register_buffer("action_scale", (action_high - action_low) / 2)

    def forward(self, state: Tensor, skill: Tensor) -> Tensor:
        """State [..., S] and skill [..., Z] -> action [..., A]."""
        raw = self.net(torch.cat([self.features(state), skill], -1))
        return self.action_centre + self.action_scale * torch.tanh(raw)


class SkillPrior(nn.Module):
    """p(z | s): the skills that the offline data uses in a state."""

    def __init__(self, features: StateFeatures, config: SkillConfig) -> None:
        super().__init__()
        self.features = features
        self.net = mlp(features.dim, config.prior_hidden, 2 * config.skill_dim)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """State [..., S] -> mean and standard deviation, [..., Z] each."""
        return gaussian_from(self.net(self.features(state)))


class SkillModel(nn.Module):
    """The three parts, with one shared view of the state."""

    def __init__(
        self,
        features: FeatureConfig,
        config: SkillConfig,
        *,
        state_mean: Tensor,
        state_std: Tensor,
        action_low: Tensor,
        action_high: Tensor,
    ) -> None:
        super().__init__()
        self.features = StateFeatures(len(state_mean), features, state_mean, state_std)
        self.encoder = SkillEncoder(self.features, len(action_low), config)
        self.decoder = SkillDecoder(self.features, action_low, action_high, config)
        self.prior = SkillPrior(self.features, config)
