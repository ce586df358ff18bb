"""Multi-task training: one policy and one set of critics for all training tasks, which are not told which task they are in."""

from typing import Any

import torch
from torch import Tensor, nn

from training.meta_training import MetaTrainer
from training.networks.critic import SkillCritic
from training.networks.meta_policy import MetaPolicy


class MultiTaskTrainer(MetaTrainer):
    """Meta-training with networks that are blind to the task embedding: the weights that would read it are zero, and stay so."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        dim = self.config.networks.task_embedding_dim
        blind(self.networks.policy, dim)
        blind(self.networks.critic, dim)
        blind(self.networks.target_critic, dim)


def blind(network: MetaPolicy | SkillCritic, embedding_dim: int) -> None:
    """Hold the weights of the last ``embedding_dim`` inputs at zero, those of the task embedding."""
    if isinstance(network, MetaPolicy):
        weight: nn.Parameter = network.net[0].weight  # [out, in]
        mask = torch.ones_like(weight)
        mask[:, -embedding_dim:] = 0.0
    else:
        weight = network.net.layers[0].weight  # [M, in, out]
        mask = torch.ones_like(weight)
        mask[:, -embedding_dim:] = 0.0
    with torch.no_grad():
        weight.mul_(mask)

    def masked(gradient: Tensor) -> Tensor:
        return gradient * mask.to(gradient.device)

    if weight.requires_grad:
        weight.register_hook(masked)
