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
        for weight in (self.networks.policy.net[0].weight, self.networks.critic.net.layers[0].weight):
            _freeze(weight, dim)


def _freeze(weight: nn.Parameter, inputs: int) -> None:
    """Let no gradient reach what reads the last ``inputs`` of a layer's inputs; its weight is [out, in], or [M, in, out] of M layers."""

    def masked(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, -inputs:] = 0.0
        return gradient

    weight.register_hook(masked)
