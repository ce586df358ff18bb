"""Gradient steps of several fine-tuned tasks at once: their networks side by side in batched products, each task as if it were alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from training.finetuning import Finetuner, finetuning_step
from training.prior_regularised_sac import Coefficients
from training.replay import Batch


def update_together(learners: Sequence[Finetuner]) -> None:
    """Make every gradient step that the learners owe; all of them have the same configuration and sizes of networks.

    Each draws its own batches and noise, so that it ends where `Finetuner.update` alone would have taken it, up to rounding.
    """
    waiting = [learner for learner in learners if learner.updates_due()]
    while waiting:
        count = min(learner.updates_due() for learner in waiting)
        if len(waiting) == 1:
            waiting[0].update(count)
        else:
            stack = FinetunerStack(waiting)
            for _ in range(count):
                stack.step()
            stack.hand_back()
            for learner in waiting:
                learner.made(count)
        waiting = [learner for learner in waiting if learner.updates_due()]


class StackedModule(nn.Module):
    """``S`` modules of one shape as one: inputs [S, ...], each slice through its own weights.

    ``names`` are the parameters that differ; the others are the first module's.
    """

    def __init__(self, modules: Sequence[nn.Module], names: Sequence[str], out_dim: int = 0) -> None:
        super().__init__()
        self._modules_stacked, self.names, self.out_dim = tuple(modules), tuple(names), out_dim
        own = [[module.get_parameter(name) for name in names] for module in modules]
        trained = own[0][0].requires_grad
        stacked = [torch.stack([p.detach() for p in parts]) for parts in zip(*own, strict=True)]
        self.stacked = nn.ParameterList(nn.Parameter(part, requires_grad=trained) for part in stacked)

    def forward(self, *inputs: Tensor) -> Any:
        """Inputs [S, ...] as the modules take them without S; outputs have S at ``out_dim``."""

        def one(parameters: dict[str, Tensor], *inputs: Tensor) -> Any:
            return functional_call(self._modules_stacked[0], parameters, inputs)

        return vmap(one, out_dims=self.out_dim)(dict(zip(self.names, self.stacked, strict=True)), *inputs)

    @torch.no_grad()
    def hand_back(self) -> None:
        """Copy the weights into the modules that they came from."""
        for index, module in enumerate(self._modules_stacked):
            for name, part in zip(self.names, self.stacked, strict=True):
                module.get_parameter(name).copy_(part[index])


class StackedAdam:
    """Adam (Kingma and Ba 2015) on stacked parameters [S, ...], whose members may stand at different steps."""

    def __init__(
        self, stacked: Sequence[nn.Parameter], optimizers: Sequence[torch.optim.Adam], parameters: Sequence[Sequence[nn.Parameter]]
    ) -> None:
        self.stacked, self.optimizers, self.parameters = list(stacked), optimizers, parameters
        group = optimizers[0].param_groups[0]
        self.learning_rate, self.betas, self.eps = group["lr"], group["betas"], group["eps"]
        self.steps = torch.tensor([float(optimizer.state.get(own[0], {}).get("step", 0.0)) for optimizer, own in self._members()])
        self.mean, self.square = self._gather("exp_avg"), self._gather("exp_avg_sq")

    def _members(self) -> list[tuple[torch.optim.Adam, Sequence[nn.Parameter]]]:
        return list(zip(self.optimizers, self.parameters, strict=True))

    def _gather(self, key: str) -> list[Tensor]:
        """Moments [S, ...] of each parameter; zero where an optimiser has made no step yet."""
        own = [[optimizer.state.get(p, {}).get(key, torch.zeros_like(p)) for p in parameters] for optimizer, parameters in self._members()]
        return [torch.stack(parts) for parts in zip(*own, strict=True)]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As an optimiser of torch."""
        for parameter in self.stacked:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of every member."""
        first, second = self.betas
        self.steps += 1
        gradients = [p.grad for p in self.stacked if p.grad is not None]
        torch._foreach_lerp_(self.mean, gradients, 1 - first)
        torch._foreach_mul_(self.square, second)
        torch._foreach_addcmul_(self.square, gradients, gradients, 1 - second)
        size, scale = self.learning_rate / (1 - first**self.steps), (1 - second**self.steps).rsqrt()
        for parameter, mean, square in zip(self.stacked, self.mean, self.square, strict=True):
            shape = (-1, *[1] * (mean.dim() - 1))
            parameter.sub_(mean * size.view(shape) / (square.sqrt() * scale.view(shape) + self.eps))

    @torch.no_grad()
    def hand_back(self) -> None:
        """Put steps and moments into the optimisers that they came from."""
        for index, (optimizer, parameters) in enumerate(self._members()):
            for parameter, mean, square in zip(parameters, self.mean, self.square, strict=True):
                optimizer.state[parameter] = {
                    "step": self.steps[index].clone(),
                    "exp_avg": mean[index].clone(),
                    "exp_avg_sq": square[index].clone(),
                }


class FinetunerStack:
    """The networks and optimisers of several learners, side by side until they are handed back. Takes the place of `LearnerNetworks`."""

    def __init__(self, learners: Sequence[Finetuner]) -> None:
        self.learners, self.config = list(learners), learners[0].config
        own = [learner.networks for learner in learners]
        judging = [name for name, _ in own[0].critic.named_parameters()]
        self.policy = StackedModule([n.policy for n in own], list(own[0].policy.residual_parameters()))
        self.critic = StackedModule([n.critic for n in own], judging, out_dim=1)  # [M, S, B]
        self.target_critic = StackedModule([n.target_critic for n in own], judging, out_dim=1)
        self.coefficient = Coefficients(1.0, own[0].coefficient.target, may_fall=own[0].coefficient.may_fall)
        self.coefficient.raw = nn.Parameter(torch.stack([n.coefficient.raw.detach() for n in own]))  # [S, 1]
        self.embedding = torch.stack([learner.task_embedding for learner in learners])[:, None].expand(-1, self.config.batch, -1)
        stacked = {"critic": [*self.critic.stacked], "actor": [*self.policy.stacked], "dual": [self.coefficient.raw]}
        self.optimizers = {name: self._adam(name, parameters) for name, parameters in stacked.items()}

    def _adam(self, name: str, stacked: Sequence[nn.Parameter]) -> StackedAdam:
        optimizers = [learner.optimizers()[name] for learner in self.learners]
        return StackedAdam(stacked, optimizers, [optimizer.param_groups[0]["params"] for optimizer in optimizers])

    def step(self) -> None:
        """One gradient step of each."""
        batches, noises = zip(*(learner.draw() for learner in self.learners), strict=True)
        finetuning_step(self.config, self, self.optimizers, Batch.stack(batches), self.embedding, torch.stack(noises, 1))

    @torch.no_grad()
    def hand_back(self) -> None:
        """Put everything into the learners that it came from."""
        for module in (self.policy, self.critic, self.target_critic, *self.optimizers.values()):
            module.hand_back()
        for learner, raw in zip(self.learners, self.coefficient.raw, strict=True):
            learner.networks.coefficient.raw.copy_(raw)
