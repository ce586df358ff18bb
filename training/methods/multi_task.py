"""Multi-task training: one policy and one set of critics for all training tasks, which are not told which task they are in."""

from typing import Any

from torch import nn

from training.meta_training import MetaTrainer


class MultiTaskTrainer(MetaTrainer):
    """Meta-training with networks that are blind to the task embedding: the weights that would read it are zero, and stay so."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.networks.forget_embedding()
        for weight in (self.networks.policy.net[0].weight, self.networks.critic.net.layers[0].weight):
            _keep_zeros(weight)


def _keep_zeros(weight: nn.Parameter) -> None:
    """Let no gradient change those of the weights that are zero now."""
    mask = (weight.detach() != 0).to(weight.dtype)
    weight.register_hook(lambda gradient: gradient * mask.to(gradient.device))
