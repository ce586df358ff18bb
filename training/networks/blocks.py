"""Building blocks: state features, multilayer perceptrons (single and stacked), diagonal Gaussians."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import FeatureConfig

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
STD_FLOOR = 1e-3
FARTHEST = 5.0
"""Standard deviations from the mean of the data beyond which a network sees no difference."""


class StateFeatures(nn.Module):
    """What the networks see of a state: standardised entries, then sines and cosines of chosen raw entries.

    The normaliser is part of the module, hence of every exported graph. float32 [..., S] -> [..., F].
    """

    def __init__(self, state_dim: int, config: FeatureConfig, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.entries = list(config.periodic_entries)
        self.register_buffer("mean", torch.zeros(state_dim) if mean is None else mean.float())
        self.register_buffer("std", torch.ones(state_dim) if std is None else std.float())
        self.register_buffer("frequencies", torch.tensor([2 * math.pi / period for period in config.periods]))
        self.dim = state_dim + 2 * len(self.entries) * len(config.periods)

    def forward(self, state: Tensor) -> Tensor:
        """float32 [..., S] -> [..., F]."""
        # Entries that hardly vary in the data can be bumped far outside it, which must not drown the others.
        plain = ((state - self.mean) / self.std).clamp(-FARTHEST, FARTHEST)
        if not self.entries:
            return plain
        phases = (state[..., self.entries].unsqueeze(-1) * self.frequencies).flatten(-2)  # [..., entries * periods]
        return torch.cat([plain, torch.sin(phases), torch.cos(phases)], -1)


def mlp(in_dim: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """Linear layers with ReLU between: [..., in_dim] -> [..., out_dim]."""
    sizes = [in_dim, *hidden]
    layers: list[nn.Module] = []
    for left, right in itertools.pairwise(sizes):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out_dim))


class StackedLinear(nn.Module):
    """``M`` linear layers in one batched product: [M, B, in_dim] -> [M, B, out_dim]."""

    def __init__(self, members: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(members, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[M, B, in_dim] -> [M, B, out_dim]."""
        return torch.baddbmm(self.bias, x, self.weight)


class StackedMLP(nn.Module):
    """``M`` independent MLPs, with LayerNorm before each ReLU (RLPD: Ball et al. 2023) or without: [B, in_dim] -> [M, B, out_dim]."""

    def __init__(self, members: int, in_dim: int, hidden: Sequence[int], out_dim: int, *, layer_norm: bool = True) -> None:
        super().__init__()
        self.members, self.layer_norm = members, layer_norm
        sizes = [in_dim, *hidden]
        self.layers = nn.ModuleList(StackedLinear(members, left, right) for left, right in itertools.pairwise(sizes))
        self.last = StackedLinear(members, sizes[-1], out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim] -> [M, B, out_dim]."""
        h = x.expand(self.members, *x.shape)
        for layer in self.layers:
            h = layer(h)
            h = functional.relu(functional.layer_norm(h, h.shape[-1:]) if self.layer_norm else h)
        return self.last(h)


def gaussian_from(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Split [..., 2 K] into a mean and a standard deviation, [..., K] each; the log of the latter is clamped as in SPiRL."""
    mean, log_std = raw.chunk(2, -1)
    return mean, torch.exp(log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))


def inverse_softplus(x: Tensor) -> Tensor:
    """The x' with softplus(x') = x, for x > 0, without overflow."""
    return x + torch.log(-torch.expm1(-x))


def kl_divergence(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(N(mean, std) || N(other_mean, other_std)) of diagonal Gaussians, summed over the last axis: [..., K] -> [...], nats."""
    ratio = (std / other_std).square()
    distance = ((mean - other_mean) / other_std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def kl_to_standard(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std) || N(0, I)), summed over the last axis, nats."""
    return 0.5 * (std.square() + mean.square() - 1 - 2 * std.log()).sum(-1)
