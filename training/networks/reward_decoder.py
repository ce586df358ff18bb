"""Reward decoder p(reward | s, e): where a task embedding expects a reward."""

import torch
from torch import Tensor, nn

from training.config import FeatureConfig
from training.networks.blocks import StateFeatures, mlp


class RewardDecoder(nn.Module):
    """Sees standardised states without sines and cosines: what is near in state space shall count as near, also between training tasks."""

    def __init__(self, state_mean: Tensor, state_std: Tensor, embedding_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.features = StateFeatures(len(state_mean), FeatureConfig(), state_mean, state_std)
        self.net = mlp(self.features.dim + embedding_dim, hidden, 1)

    def logits(self, state: Tensor, task_embedding: Tensor) -> Tensor:
        """State [..., S] and task embedding [..., E] -> log odds of a reward, [...]."""
        return self.net(torch.cat([self.features(state), task_embedding], -1)).squeeze(-1)

    def forward(self, state: Tensor, task_embedding: Tensor) -> Tensor:
        """State [..., S] and task embedding [..., E] -> probability of a reward, [...]."""
        return torch.sigmoid(self.logits(state, task_embedding))
