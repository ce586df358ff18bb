"""Soft actor-critic in skill space with the KL to the skill prior in the place of entropy (SPiRL, algorithm 1; SiMPL, section 4.2)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.blocks import inverse_softplus, kl_divergence
from training.networks.critic import SkillCritic
from training.networks.meta_policy import MetaPolicy
from training.replay import Batch


class Coefficients(nn.Module):
    """Positive Lagrange multipliers: each grows while its KL is above its target (SiMPL, appendix).

    They never fall again, but for those that ``may_fall``, as the temperature of soft actor-critic does (Haarnoja et al. 2018, section 5).
    """

    def __init__(self, initial: float, target: float, count: int = 1, *, may_fall: bool = False) -> None:
        super().__init__()
        self.may_fall = may_fall
        self.raw = nn.Parameter(inverse_softplus(torch.full((count,), initial, dtype=torch.float64)).float())
        self.target = target

    def forward(self) -> Tensor:
        """Values [count], without gradient."""
        return functional.softplus(self.raw).detach()

    def loss(self, kl: Tensor, index: Tensor | None = None) -> Tensor:
        """coefficient * (target - KL), held at zero below the target unless they may fall. ``kl`` [count], or of the entries ``index``."""
        excess = self.target - kl.detach()
        if not self.may_fall:
            excess = excess.clamp_max(0)
        values = functional.softplus(self.raw)
        return ((values if index is None else values[index]) * excess).sum()


def critic_target(
    batch: Batch,
    embedding: Tensor,
    policy: MetaPolicy,
    target_critic: SkillCritic,
    alpha: Tensor,
    *,
    discount: float,
    kl_clip: float,
    return_bound: bool,
    noise: Tensor | None = None,
) -> Tensor:
    """y = r + (1 - d) gamma [min_i Qbar_i(s', z', e) - alpha clip(KL(pi || p))], bounded from below by the observed discounted return. [B].

    ``noise`` [B, Z] is what z' is drawn with, standard normal; None draws it here.

    The bound (Oh et al. 2018, self-imitation; here on the target) holds where the dynamics are nearly deterministic; it is what makes a
    sparse reward travel back over hundreds of skills within few updates.
    """
    with torch.no_grad():
        mean, std, prior_mean, prior_std = policy(batch.next_state, embedding)
        skill = mean + std * (torch.randn_like(std) if noise is None else noise)
        kl = kl_divergence(mean, std, prior_mean, prior_std).clamp_max(kl_clip)
        value = target_critic(batch.next_state, skill, embedding).amin(0) - alpha * kl
        target = batch.reward + (1 - batch.terminated) * discount * value
        return torch.maximum(target, batch.discounted_return) if return_bound else target


def critic_loss(batch: Batch, embedding: Tensor, critic: SkillCritic, target: Tensor) -> Tensor:
    """mean over critics and batch of (Q_i(s, z, e) - y)^2."""
    return (critic(batch.state, batch.skill, embedding) - target).square().mean()


def actor_terms(
    batch: Batch, embedding: Tensor, policy: MetaPolicy, critic: SkillCritic, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the actor minimises, [B] each. The critic is left without gradients; ``noise`` as for `critic_target`.

    -min_i Q_i(s, z, e) with z ~ pi, reparametrised; KL(pi || p); and -log pi(z | s, e) of the skills of the task's best episodes, zero for
    other transitions (self-imitation: Oh et al. 2018).
    """
    critic.requires_grad_(False)
    mean, std, prior_mean, prior_std = policy(batch.state, embedding)
    skill = mean + std * (torch.randn_like(std) if noise is None else noise)
    value = critic(batch.state, skill, embedding).amin(0)
    critic.requires_grad_(True)
    imitation = -torch.distributions.Normal(mean, std, validate_args=False).log_prob(batch.skill).sum(-1) * batch.best
    return -value, kl_divergence(mean, std, prior_mean, prior_std), imitation


def polyak(online: nn.Module, target: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate online."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def finite(modules: Iterable[nn.Module]) -> bool:
    """True when every parameter is a finite number."""
    return all(bool(torch.isfinite(parameter).all()) for module in modules for parameter in module.parameters())
