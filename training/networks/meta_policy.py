"""Meta-policy pi(z | s, e): a residual on the frozen skill prior (SiMPL, section 4.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import NetworkConfig
from training.networks.blocks import STD_FLOOR, inverse_softplus, mlp
from training.networks.skill_model import SkillPrior


class MetaPolicy(nn.Module):
    """pi(z | s, e) = N(mu_p(s) + f_mu, softplus(softplus^-1(sigma_p(s)) + f_sigma)): at first, and far from data, the skill prior."""

    def __init__(self, skill_prior: SkillPrior, skill_dim: int, config: NetworkConfig) -> None:
        super().__init__()
        self.skill_prior = skill_prior.requires_grad_(False)
        self.net = mlp(skill_prior.features.dim + config.task_embedding_dim, config.policy_hidden, 2 * skill_dim)
        with torch.no_grad():  # near-zero residual, so that the untrained policy is the prior
            self.net[-1].weight.mul_(0.01)
            self.net[-1].bias.mul_(0.01)

    def forward(self, state: Tensor, task_embedding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """State [..., S], task embedding [..., E] -> skill mean, skill std, prior mean, prior std, [..., Z] each."""
        with torch.no_grad():
            prior_mean, prior_std = self.skill_prior(state)
        shift, stretch = self.net(torch.cat([self.skill_prior.features(state), task_embedding], -1)).chunk(2, -1)
        std = STD_FLOOR + functional.softplus(inverse_softplus(prior_std) + stretch)
        return prior_mean + shift, std, prior_mean, prior_std

    def residual_parameters(self) -> dict[str, nn.Parameter]:
        """The trained part, by the names that the exported graph's initializers have."""
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith("net.")}
