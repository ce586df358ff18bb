"""Task encoder q(e | c): a set of skill transitions -> a Gaussian over task embeddings.

Two kinds: a set transformer (Lee et al. 2019; the one in SiMPL) and a product of Gaussians (PEARL, Rakelly et al. 2019). Both are invariant
to the order of the context, and an empty context gives exactly the task prior N(0, I).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import NetworkConfig
from training.contract.context import ContextLayout
from training.networks.blocks import STD_FLOOR, StateFeatures, inverse_softplus, mlp

_UNIT_PRE_STD = float(inverse_softplus(torch.tensor(1.0)))


class TransitionTokens(nn.Module):
    """Skill transitions as network inputs: [..., D] -> [..., F'], states through their features."""

    def __init__(self, features: StateFeatures, layout: ContextLayout) -> None:
        super().__init__()
        self.features, self.layout = features, layout
        self.dim = 2 * features.dim + layout.skill_dim + 2

    def forward(self, rows: Tensor) -> Tensor:
        """[..., D] -> [..., F']."""
        layout = self.layout
        middle = rows[..., layout.state_dim : layout.state_dim + layout.skill_dim + 2]
        return torch.cat([self.features(rows[..., layout.state]), middle, self.features(rows[..., layout.next_state])], -1)


class Attention(nn.Module):
    """Multi-head attention block MAB(X, Y) without LayerNorm (Lee et al. 2019, equation 6), keys masked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Queries [B, P, W], keys [B, N, W], additive mask [B, 1, 1, N] or None -> [B, P, W]."""
        batch, width = y.shape[0], y.shape[-1]

        def split(t: Tensor) -> Tensor:
            return t.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)  # [B, heads, *, W / heads]

        scores = split(self.query(x)) @ split(self.key(y)).transpose(-1, -2) / math.sqrt(width // self.heads)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        h = x + (weights @ split(self.value(y))).transpose(1, 2).reshape(batch, -1, width)
        return h + functional.relu(self.out(h))


class SetTransformer(nn.Module):
    """Induced set attention blocks, then pooling by attention with one seed: [B, N, F'], mask -> [B, W]."""

    def __init__(self, in_dim: int, config: NetworkConfig) -> None:
        super().__init__()
        width, heads = config.encoder_width, config.encoder_heads
        self.embed = nn.Linear(in_dim, width)
        self.inducing = nn.ParameterList(
            nn.Parameter(torch.randn(1, config.encoder_inducing_points, width) / math.sqrt(width)) for _ in range(config.encoder_blocks)
        )
        self.gather = nn.ModuleList(Attention(width, heads) for _ in range(config.encoder_blocks))
        self.spread = nn.ModuleList(Attention(width, heads) for _ in range(config.encoder_blocks))
        self.seed = nn.Parameter(torch.randn(1, 1, width) / math.sqrt(width))
        self.pool = Attention(width, heads)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, N, F'] and mask [B, N] (1 real, 0 padding; N >= 1) -> [B, W]."""
        hidden = torch.relu(self.embed(tokens))
        additive = ((mask - 1) * 1e9)[:, None, None, :]  # [B, 1, 1, N]
        for points, gather, spread in zip(self.inducing, self.gather, self.spread, strict=True):
            summary = gather(points.expand(hidden.shape[0], -1, -1), hidden, additive)
            hidden = spread(hidden, summary, None)
        return self.pool(self.seed.expand(hidden.shape[0], -1, -1), hidden, additive).squeeze(1)


class TaskEncoder(nn.Module):
    """q(e | c)."""

    def __init__(self, features: StateFeatures, layout: ContextLayout, config: NetworkConfig) -> None:
        super().__init__()
        self.tokens = TransitionTokens(features, layout)
        self.kind, self.embedding_dim, width = config.encoder, config.task_embedding_dim, config.encoder_width
        if self.kind == "set_transformer":
            self.pool = SetTransformer(self.tokens.dim, config)
            self.head = mlp(width, (width, width), 2 * self.embedding_dim)
        else:
            self.head = mlp(self.tokens.dim, (2 * width, 2 * width), 2 * self.embedding_dim)

    def forward(self, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Context [B, N, D] and mask [B, N] (1 real, 0 padding; N may be 0) -> mean and standard deviation, [B, E] each."""
        # A padded row keeps the attention defined when the context is empty; the answer is then replaced by the task prior.
        padded = functional.pad(context, (0, 0, 0, 1))
        padded_mask = functional.pad(mask, (0, 1))
        raw = self._transformed(padded, padded_mask) if self.kind == "set_transformer" else self._multiplied(padded, padded_mask)
        known = mask.sum(-1, keepdim=True) > 0
        return torch.where(known, raw[0], torch.zeros_like(raw[0])), torch.where(known, raw[1], torch.ones_like(raw[1]))

    def _transformed(self, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mean, pre_std = self.head(self.pool(self.tokens(context), mask)).chunk(2, -1)
        return mean, STD_FLOOR + functional.softplus(_UNIT_PRE_STD + pre_std)

    def _multiplied(self, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Product of one Gaussian factor per transition (PEARL, section 4.1): precisions add, means are weighted by them."""
        mean, pre_std = self.head(self.tokens(context)).chunk(2, -1)  # [B, N + 1, E]
        precision = mask.unsqueeze(-1) / (STD_FLOOR + functional.softplus(_UNIT_PRE_STD + pre_std)).square()
        total = precision.sum(-2).clamp_min(1e-6)
        return (precision * mean).sum(-2) / total, total.rsqrt()
