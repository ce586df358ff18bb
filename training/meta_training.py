"""Stage 2: skill-based meta-training (SiMPL, section 4.2, on PEARL): task encoder, meta-policy and critics over the training tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import MetaConfig, NetworkConfig, TrainingConfig, changed_meta_settings
from training.context_pool import ContextPool
from training.contract.context import ContextLayout, Floats
from training.contract.errors import ConfigError
from training.data import Episode
from training.networks.blocks import kl_to_standard
from training.networks.critic import SkillCritic
from training.networks.meta_policy import MetaPolicy
from training.networks.skill_model import SkillModel
from training.networks.task_encoder import TaskEncoder
from training.prior_regularised_sac import Coefficients, actor_terms, critic_loss, critic_target, polyak, step
from training.relabelling import Relabeller
from training.replay import SkillEpisode, TaskReplay
from training.rollout import Acting, TaskSimulator, rollout
from training.run_log import RunLog


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
        self.generator = torch.Generator().manual_seed(seed)
        self.encoder_prior = Coefficients(config.encoder_prior_coefficient, config.encoder_prior_target)
        self.encoder_posterior = Coefficients(config.encoder_posterior_coefficient, config.encoder_posterior_target, tasks)
        self.policy_prior = Coefficients(config.policy_prior_coefficient, config.policy_prior_target)
        self.policy_posterior = Coefficients(config.policy_posterior_coefficient, config.policy_posterior_target)
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

    def update(self, replay: TaskReplay, contexts: ContextSource, *, return_bound: bool = True) -> dict[str, Tensor]:
        """One step of critics and encoder, actor, and coefficients. Returns detached scalar metrics."""
        config, networks = self.config, self.networks
        tasks, few, many = self._choose_tasks(replay)
        batch = replay.sample(tasks, config.batch_per_task, config.success_share, self.generator).flat().to(self.device)
        groups = torch.arange(len(tasks), device=self.device).repeat_interleave(config.batch_per_task)
        is_prior = groups < len(few)

        mean, std = self._encode(contexts, few, many)  # [T, E]
        # One embedding for every transition, not one for a task: the policy learns to act under the whole posterior.
        embedding = mean[groups] + std[groups] * torch.randn(len(groups), mean.shape[-1], device=self.device)
        alpha = torch.where(is_prior, self.policy_prior(), self.policy_posterior())

        target = critic_target(
            batch, embedding.detach(), networks.policy, networks.target_critic, alpha,
            discount=config.discount, kl_clip=config.kl_clip, return_bound=return_bound,
        )  # fmt: skip
        judged = critic_loss(batch, embedding, networks.critic, target)
        encoder_kl = kl_to_standard(mean, std)  # [T]
        weight = torch.cat([self.encoder_prior().expand(len(few)), self.encoder_posterior()[many]])
        step(self.judge_optimizer, judged + (weight * encoder_kl).mean())

        improvement, policy_kl, _ = actor_terms(batch, embedding.detach(), networks.policy, networks.critic)
        step(self.actor_optimizer, (improvement + alpha * policy_kl).mean())

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

    def _choose_tasks(self, replay: TaskReplay) -> tuple[list[int], list[int], list[int]]:
        known = [task for task in range(len(replay.added)) if replay.added[task]]
        order = [known[i] for i in torch.randperm(len(known), generator=self.generator)]
        chosen = order[: self.config.prior_tasks + self.config.posterior_tasks]
        few = chosen[: self.config.prior_tasks]
        return chosen, few, chosen[len(few) :]

    def _encode(self, contexts: ContextSource, few: list[int], many: list[int]) -> tuple[Tensor, Tensor]:
        parts = []
        for tasks, count in ((few, self.config.prior_context), (many, self.config.posterior_context)):
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


class MetaTrainer:
    """The loop: an epoch collects an episode with a prior and one with a posterior embedding for every task, then updates."""

    def __init__(
        self,
        config: TrainingConfig,
        skills: SkillModel,
        simulator: TaskSimulator,
        tasks: Sequence[Any],
        run_dir: Path,
        device: str = "cpu",
        offline: Sequence[Episode] = (),
    ) -> None:
        if len(tasks) <= config.meta.prior_tasks:
            raise ConfigError(
                f"meta.prior_tasks is {config.meta.prior_tasks} and there are {len(tasks)} training tasks: none is left for the posterior"
            )
        torch.manual_seed(config.seed)
        self.config, self.simulator, self.tasks, self.run_dir, self.offline = config, simulator, list(tasks), run_dir, offline
        state_dim = len(skills.features.mean)
        self.layout = ContextLayout(state_dim, config.skills.skill_dim)
        self.networks = MetaNetworks.fresh(skills, self.layout, config.networks)
        self.learner = MetaLearner(self.networks, config.meta, len(tasks), config.seed, device)
        self.replay = TaskReplay(len(tasks), config.meta.buffer_per_task, self.layout, config.meta.discount)
        self.relabeller = Relabeller(simulator, tasks, self.layout, config.skills.horizon)
        self.pool = ContextPool(self.relabeller, config.meta.context_pool) if config.meta.context_pool else None
        self.rng = np.random.default_rng(config.seed)
        self.updates = self.epoch = 0

    @property
    def contexts(self) -> ContextSource:
        """Where contexts come from: the pool of all tasks' episodes, or each task's own replay."""
        return self.replay if self.pool is None else self.pool

    @property
    def checkpoint(self) -> Path:
        """Where the stage stands."""
        return self.run_dir / "meta.safetensors"

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one. The replay is collected anew, by the policy that it had come to."""
        if self.checkpoint.exists():
            note = self._load(self.learner.optimizers())
            self.updates, self.epoch = int(note["updates"]), int(note["epoch"])
            self.rng = np.random.default_rng([self.config.seed, self.updates])
            self.learner.generator.manual_seed(self.config.seed + self.updates)
        if self.updates < self.config.meta.updates:
            self._add_demonstrations()  # the oldest, which newer episodes push out first
            for _ in range(min(10, self.epoch)):
                self.collect()

    def save(self) -> None:
        """Write the checkpoint."""
        modules = self.networks.modules() | self.learner.coefficients()
        note = {"updates": self.updates, "epoch": self.epoch, "meta": self.config.meta.model_dump(mode="json")}
        save_checkpoint(self.checkpoint, modules=modules, optimizers=self.learner.optimizers(), note=note)

    def load_networks(self) -> int:
        """Take networks and KL coefficients from the checkpoint. Returns after how many updates it was written.

        Raises ConfigError when it was trained with other settings than this configuration's, or for more updates.
        """
        return int(self._load({})["updates"])

    def _load(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
        modules = self.networks.modules() | self.learner.coefficients()
        note = load_checkpoint(self.checkpoint, modules=modules, optimizers=optimizers)[1]
        wanted = self.config.meta
        # The checkpoints of earlier versions do not say how they were trained.
        if changed := changed_meta_settings(note["meta"], wanted) if "meta" in note else []:
            raise ConfigError(
                f"{self.checkpoint} was trained with another {', '.join(changed)} than this configuration has: choose another folder, "
                "or delete it to train anew"
            )
        if note["updates"] > wanted.updates:
            raise ConfigError(
                f"{self.checkpoint} was trained for {note['updates']} updates, and meta.updates is {wanted.updates}: give "
                f"--set meta.updates={note['updates']}, choose another folder, or delete it to train anew"
            )
        return note

    def collect(self) -> dict[str, float]:
        """One episode with e ~ N(0, I) and one with e ~ q(e | context) for every task. Returns their success and return."""
        self.networks.to("cpu")  # simulators live there, and single states are not worth a transfer
        count = len(self.tasks)
        everything = list(range(count))
        mean, std = posterior_means(self.networks, self.contexts, everything, self.config.meta.posterior_context, self.learner.generator)
        noise = torch.randn(2 * count, mean.shape[-1], generator=self.learner.generator)
        embeddings = torch.cat([noise[:count], mean + std * noise[count:]])
        relabelled = self.config.meta.relabelled_episodes
        episodes, paths = rollout(
            self.simulator, [*self.tasks, *self.tasks], self.networks.policy, self.networks.skills.decoder, Acting.by_policy(embeddings),
            horizon=self.config.skills.horizon, layout=self.layout, rng=self.rng, paths=relabelled > 0 or self.pool is not None,
        )  # fmt: skip
        for index, episode in enumerate(episodes):
            self.replay.add(index % count, episode.rows)
        if relabelled:
            self._relabel(episodes, paths)
        if self.pool is not None:
            for index, (episode, path) in enumerate(zip(episodes, paths, strict=True)):
                self.pool.add(index % count, episode, path)
        self.networks.to(self.learner.device)
        prior, posterior = episodes[:count], episodes[count:]
        return {
            "prior_return": float(np.mean([e.episode_return for e in prior])),
            "posterior_return": float(np.mean([e.episode_return for e in posterior])),
            "posterior_success": float(np.mean([e.success for e in posterior])),
            "environment_steps": float(sum(e.steps for e in episodes)),
        }

    def _relabel(self, episodes: Sequence[SkillEpisode], paths: Sequence[Floats]) -> None:
        """Add to each task's replay some of the other tasks' episodes that would have earned a reward in it."""
        found: list[list[SkillEpisode]] = [[] for _ in self.tasks]
        for index, (episode, path) in enumerate(zip(episodes, paths, strict=True)):
            for task, relabelled in self.relabeller.rewarded(episode.rows, path).items():
                if task != index % len(self.tasks):
                    found[task].append(relabelled)
        for task, candidates in enumerate(found):
            count = min(len(candidates), self.config.meta.relabelled_episodes)
            for chosen in self.rng.choice(len(candidates), count, replace=False) if count else ():
                self.replay.add(task, candidates[chosen].rows)

    def _add_demonstrations(self) -> None:
        """Let each task's replay begin with offline episodes; newer ones push them out in time."""
        config = self.config
        self.networks.to("cpu")  # offline episodes are there
        chosen = self.relabeller.demonstrations(self.networks.skills, self.offline, config.meta.demonstrations, config.seed)
        for task, episodes in enumerate(chosen):
            for episode in episodes:
                self.replay.add(task, episode.rows)
        self.networks.to(self.learner.device)

    def run(self) -> MetaNetworks:
        """Train until the configured number of updates; resumable."""
        self.resume()
        config = self.config.meta
        with RunLog(self.run_dir, "meta", config.updates, "updates", resumed_at=self.updates) as log:
            while self.updates < config.updates:
                collected = self.collect()
                metrics: list[dict[str, Tensor]] = []
                for _ in range(min(config.updates_per_epoch, config.updates - self.updates)):
                    bounded = self.updates < self.learner.bounded_updates
                    metrics.append(self.learner.update(self.replay, self.contexts, return_bound=bounded))
                    self.updates += 1
                    log.advance(self.updates)
                self.epoch += 1
                means = {name: float(torch.stack([m[name] for m in metrics]).mean()) for name in metrics[0]}
                log.report(self.updates, collected | means)
                if self.epoch % config.checkpoint_epochs == 0:
                    self.save()
        self.save()
        return self.networks.to("cpu")
