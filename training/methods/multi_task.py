"""Multi-task training: one policy and one set of critics for all training tasks, which are not told which task they are in."""

from typing import Any

from torch import Tensor, nn

from training.meta_training import MetaTrainer


class MultiTaskTrainer(MetaTrainer):
    """Meta-training with networks that are blind to the task embedding: the weights that would read it are zero, and stay so."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.networks.forget_embedding()
        dim = self.config.networks.task_embedding_dim
        _freeze(self.networks.policy.net[0].weight, (..., slice(-dim, None)))  # [out, in]
        _freeze(self.networks.critic.net.layers[0].weight, (..., slice(-dim, None), slice(None)))  # [M, in, out]


def _freeze(weight: nn.Parameter, part: tuple[Any, ...]) -> None:
    """Let no gradient reach ``part`` of a weight."""

    def masked(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[part] = 0.0
        return gradient

    weight.register_hook(masked)
