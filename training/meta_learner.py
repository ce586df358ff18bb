"""What meta-training learns, and how: networks, and losses of task encoder, meta-policy and critics (SiMPL, section 4.2, on PEARL)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.config import MetaConfig, NetworkConfig
from training.contract.context import ContextLayout
from training.demonstrations import ImitatedSkills
from training.networks.blocks import kl_to_standard
from training.networks.critic import SkillCritic
from training.networks.meta_policy import MetaPolicy
from training.networks.skill_model import SkillModel
from training.networks.task_encoder import TaskEncoder
from training.prior_regularised_sac import Coefficients, actor_terms, critic_loss, critic_target, polyak, step
from training.replay import TaskReplay


class ContextSource(Protocol):
    """Where contexts of the training tasks come from: a `TaskReplay`, or a `ContextPool`."""

    def size(self, task: int) -> int:
        """How much there is to make a task's contexts of; 0: nothing."""

    def sample_context(self, tasks: list[int], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Contexts of up to ``count`` transitions of each task, [T, N, D], and their mask [T, N]."""


@dataclass
class MetaNetworks:
    """What meta-training learns, on frozen skills."""

    skills: SkillModel
    encoder: TaskEncoder
    policy: MetaPolicy
    critic: SkillCritic
    target_critic: SkillCritic

    @classmethod
    def fresh(cls, skills: SkillModel, layout: ContextLayout, config: NetworkConfig) -> "MetaNetworks":
        """Untrained networks; the policy is the skill prior."""
        skills.requires_grad_(False)
        encoder = TaskEncoder(skills.features, layout, config)
        policy = MetaPolicy(skills.prior, layout.skill_dim, config)
        critic = SkillCritic(skills.features, layout.skill_dim, config)
        target = SkillCritic(skills.features, layout.skill_dim, config).requires_grad_(False)
        target.load_state_dict(critic.state_dict())
        return cls(skills, encoder, policy, critic, target)

    def to(self, device: str) -> "MetaNetworks":
        """Move every network to a device. Returns itself."""
        for module in self.modules().values():
            module.to(device)
        return self

    @torch.no_grad()
    def forget_embedding(self) -> None:
        """Zero the weights with which policy and critics read the task embedding: it makes no difference to them, until they learn it."""
        dim = self.encoder.embedding_dim
        self.policy.net[0].weight[:, -dim:] = 0.0  # [out, in]
        for critic in (self.critic, self.target_critic):
            critic.net.layers[0].weight[:, -dim:] = 0.0  # [M, in, out]

    def modules(self) -> dict[str, torch.nn.Module]:
        """By name, for checkpoints."""
        return {
            "skills": self.skills,
            "encoder": self.encoder,
            "policy": self.policy,
            "critic": self.critic,
            "target_critic": self.target_critic,
        }


class MetaLearner:
    """Losses and optimisers of meta-training; knows no simulator and no disk."""

    def __init__(self, networks: MetaNetworks, config: MetaConfig, tasks: int, seed: int, device: str = "cpu") -> None:
        self.networks, self.config, self.device = networks.to(device), config, device
        self.imitated: ImitatedSkills | None = None
        """What the policy imitates in each task, under its posterior."""
        self.generator = torch.Generator().manual_seed(seed)
        self.encoder_prior = Coefficients(config.encoder_prior_coefficient, config.encoder_prior_target)
        self.encoder_posterior = Coefficients(config.encoder_posterior_coefficient, config.encoder_posterior_target, tasks)
        fall = config.coefficient_may_fall
        self.policy_prior = Coefficients(config.policy_prior_coefficient, config.policy_prior_target, may_fall=fall)
        self.policy_posterior = Coefficients(config.policy_posterior_coefficient, config.policy_posterior_target, may_fall=fall)
        for coefficient in self.coefficients().values():
            coefficient.to(device)
        judging = [*networks.critic.parameters(), *networks.encoder.parameters()]
        self.judge_optimizer = torch.optim.Adam([p for p in judging if p.requires_grad], config.learning_rate)
        self.actor_optimizer = torch.optim.Adam(networks.policy.net.parameters(), config.learning_rate)
        coefficients = [*self.coefficients().values()]
        self.dual_optimizer = torch.optim.Adam([c.raw for c in coefficients], config.coefficient_learning_rate)

    def coefficients(self) -> dict[str, Coefficients]:
        """The four kinds of KL coefficients (SiMPL, section 4.2)."""
        return {
            "encoder_prior": self.encoder_prior,
            "encoder_posterior": self.encoder_posterior,
            "policy_prior": self.policy_prior,
            "policy_posterior": self.policy_posterior,
        }

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name, for checkpoints."""
        return {"judge": self.judge_optimizer, "actor": self.actor_optimizer, "dual": self.dual_optimizer}

    @property
    def bounded_updates(self) -> float:
        """How many updates bound the critics' target by observed returns."""
        limit = math.inf if self.config.return_bound_updates is None else self.config.return_bound_updates
        return limit if self.config.return_bound else 0

    def update(
        self, replay: TaskReplay, contexts: ContextSource, *, return_bound: bool = True, blind: bool = False, imitation: float = 0.0
    ) -> dict[str, Tensor]:
        """One step of critics and encoder, actor, and coefficients. Returns detached scalar metrics.

        ``blind``: no task has an embedding (all are zero), so that policy and critics learn what is of use in all tasks, undisturbed. With
        weights that begin at zero (`MetaNetworks.forget_embedding`) they act the same under any. ``imitation``: weight of imitating what is
        `imitated`, in the losses of the actor and of the encoder, as the skills tell tasks apart too; not while blind.
        """
        config, networks = self.config, self.networks
        tasks, few, many = self._choose_tasks(replay)
        batch = replay.sample(tasks, config.batch_per_task, config.success_share, self.generator).flat().to(self.device)
        groups = torch.arange(len(tasks), device=self.device).repeat_interleave(config.batch_per_task)
        is_prior = groups < len(few)

        mean, std = self._encode(contexts, few, many, blind=blind)  # [T, E]
        # One embedding for every transition, not one for a task: the policy learns to act under the whole posterior.
        embedding = mean[groups] + std[groups] * torch.randn(len(groups), mean.shape[-1], device=self.device)
        if blind:
            embedding = torch.zeros_like(embedding)  # drawn all the same: the same numbers follow
        alpha = torch.where(is_prior, self.policy_prior(), self.policy_posterior())

        target = critic_target(
            batch, embedding.detach(), networks.policy, networks.target_critic, alpha,
            discount=config.discount, kl_clip=config.kl_clip, return_bound=return_bound,
        )  # fmt: skip
        judged = critic_loss(batch, embedding, networks.critic, target)
        encoder_kl = kl_to_standard(mean, std)  # [T]
        weight = torch.cat([self.encoder_prior().expand(len(few)), self.encoder_posterior()[many]])
        judge_loss = judged + (weight * encoder_kl).mean()
        imitated = self._imitated(many) if imitation and not blind else None
        if imitated is not None:
            judge_loss = judge_loss + imitation * self._imitation(*imitated, mean[len(few) :], std[len(few) :])
        step(self.judge_optimizer, judge_loss)

        improvement, policy_kl, _ = actor_terms(batch, embedding.detach(), networks.policy, networks.critic)
        actor_loss = (improvement + alpha * policy_kl).mean()
        if imitated is not None:
            actor_loss = actor_loss + imitation * self._imitation(*imitated, mean[len(few) :].detach(), std[len(few) :].detach())
        step(self.actor_optimizer, actor_loss)

        prior_kl, posterior_kl = policy_kl[is_prior].mean(), policy_kl[~is_prior].mean()
        dual = self.policy_posterior.loss(posterior_kl) + self.encoder_posterior.loss(
            encoder_kl[len(few) :], torch.tensor(many, device=self.device)
        )
        if few:
            dual = dual + self.policy_prior.loss(prior_kl) + self.encoder_prior.loss(encoder_kl[: len(few)].mean())
        step(self.dual_optimizer, dual)
        polyak(networks.critic, networks.target_critic, config.polyak)
        return {
            "critic_loss": judged.detach(),
            "q": -improvement.detach().mean(),
            "kl_prior": prior_kl.detach(),
            "kl_posterior": posterior_kl.detach(),
            "encoder_kl": encoder_kl[len(few) :].detach().mean(),
            "alpha": self.policy_posterior().mean(),
        }

    def _imitated(self, tasks: list[int]) -> tuple[list[int], Tensor, Tensor] | None:
        """Demonstrated states [K, B, S] and skills [K, B, Z], and of which of the ``tasks`` they are [K]; None where there are none."""
        known = [] if self.imitated is None else [index for index, task in enumerate(tasks) if task in self.imitated.known]
        if self.imitated is None or not known:
            return None
        states, skills = self.imitated.sample([tasks[index] for index in known], self.config.batch_per_task, self.generator)
        return known, states.to(self.device), skills.to(self.device)

    def _imitation(self, known: list[int], states: Tensor, skills: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """-log pi(z | s, e) of what `_imitated` gives, e drawn from the tasks' posteriors (mean and std [T, E]); a scalar."""
        drawn = torch.randn(*states.shape[:2], mean.shape[-1], device=self.device)
        embedding = mean[known, None] + std[known, None] * drawn
        policy_mean, policy_std, _, _ = self.networks.policy(states.flatten(0, 1), embedding.flatten(0, 1))
        chosen = torch.distributions.Normal(policy_mean, policy_std, validate_args=False)
        return -chosen.log_prob(skills.flatten(0, 1)).sum(-1).mean()

    def _choose_tasks(self, replay: TaskReplay) -> tuple[list[int], list[int], list[int]]:
        known = [task for task in range(len(replay.added)) if replay.added[task]]
        order = [known[i] for i in torch.randperm(len(known), generator=self.generator)]
        chosen = order[: self.config.prior_tasks + self.config.posterior_tasks]
        few = chosen[: self.config.prior_tasks]
        return chosen, few, chosen[len(few) :]

    def _encode(self, contexts: ContextSource, few: list[int], many: list[int], *, blind: bool) -> tuple[Tensor, Tensor]:
        parts = []
        sizes = (0, 0) if blind else (self.config.prior_context, self.config.posterior_context)
        for tasks, count in zip((few, many), sizes, strict=True):
            if tasks:
                context, mask = contexts.sample_context(tasks, count, self.generator)
                parts.append(self.networks.encoder(context.to(self.device), mask.to(self.device)))
        means, stds = zip(*parts, strict=True)
        return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def posterior_means(
    networks: MetaNetworks, contexts: ContextSource, tasks: Sequence[int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Posterior means and standard deviations [T, E] from contexts of up to ``count`` transitions; the task prior where there is none."""
    known = [task for task in tasks if contexts.size(task)]
    dim = networks.encoder.embedding_dim
    mean, std = torch.zeros(len(tasks), dim), torch.ones(len(tasks), dim)
    if known:
        where = [i for i, task in enumerate(tasks) if contexts.size(task)]
        mean[where], std[where] = networks.encoder(*contexts.sample_context(known, count, generator))
    return mean, std
