"""Skill critics Q_i(s, z, e)."""

import torch
from torch import Tensor, nn

from training.config import NetworkConfig
from training.networks.blocks import StackedMLP, StateFeatures


class SkillCritic(nn.Module):
    """``M`` critics evaluated together."""

    def __init__(self, features: StateFeatures, skill_dim: int, config: NetworkConfig) -> None:
        super().__init__()
        self.features = features
        in_dim = features.dim + skill_dim + config.task_embedding_dim
        self.net = StackedMLP(config.critics, in_dim, config.critic_hidden, 1, layer_norm=config.critic_layer_norm)

    def forward(self, state: Tensor, skill: Tensor, task_embedding: Tensor) -> Tensor:
        """State [B, S], skill [B, Z], task embedding [B, E] -> [M, B]."""
        return self.net(torch.cat([self.features(state), skill, task_embedding], -1)).squeeze(-1)
