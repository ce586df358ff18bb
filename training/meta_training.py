"""Stage 2: skill-based meta-training over the training tasks (SiMPL, section 4.2, on PEARL): episodes, replay, checkpoints."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.checkpoint import generator_states, load_checkpoint, save_checkpoint, set_generators
from training.config import TrainingConfig
from training.config_comparison import changed_meta_settings
from training.context_pool import Collected, ContextPool
from training.contract.context import ContextLayout, Floats
from training.contract.errors import ConfigError
from training.data import Episode
from training.demonstrations import ImitatedSkills, Judged, as_transitions, best_demonstrations
from training.experience import Experience
from training.meta_learner import ContextSource, MetaLearner, MetaNetworks, posterior_means
from training.networks.skill_model import SkillModel
from training.relabelling import Relabeller
from training.replay import SkillEpisode, TaskReplay
from training.rollout import Acting, TaskSimulator, rollout
from training.run_log import RunLog


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
        if config.meta.demonstrations and not config.meta.context_pool:
            raise ConfigError(
                f"meta.demonstrations is {config.meta.demonstrations}, and there is no pool that contexts with them are made of: "
                "set meta.context_pool too, e.g. to 600"
            )
        if (config.meta.imitation or config.meta.replayed_demonstrations) and not config.meta.demonstrations:
            raise ConfigError(
                "meta.imitation and meta.replayed_demonstrations take demonstrations, and meta.demonstrations is 0: set it too, e.g. to 60"
            )
        torch.manual_seed(config.seed)
        self.config, self.simulator, self.tasks, self.run_dir, self.offline = config, simulator, list(tasks), run_dir, offline
        state_dim = len(skills.features.mean)
        self.layout = ContextLayout(state_dim, config.skills.skill_dim)
        self.networks = MetaNetworks.fresh(skills, self.layout, config.networks)
        if config.meta.blind_updates:
            self.networks.forget_embedding()
        self.learner = MetaLearner(self.networks, config.meta, len(tasks), config.seed, device)
        self.replay = TaskReplay(len(tasks), config.meta.buffer_per_task, self.layout, config.meta.discount)
        self.relabeller = Relabeller(simulator, tasks, self.layout, config.skills.horizon)
        self.pool = ContextPool(self.relabeller, config.meta.context_pool) if config.meta.context_pool else None
        self.experience = Experience(run_dir, self.replay, self.pool)
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
        """Go on from the checkpoint, if there is one.

        Without the experience that was kept beside it, episodes are collected anew, by the policy that it had come to.
        """
        note: dict[str, Any] = {}
        if self.checkpoint.exists():
            note = self._load(self.learner.optimizers())
            self.updates, self.epoch = int(note["updates"]), int(note["epoch"])
            self.rng = np.random.default_rng([self.config.seed, self.updates])
            self.learner.generator.manual_seed(self.config.seed + self.updates)
        if self.updates < self.config.meta.updates:
            self._add_demonstrations()
            generators = self.experience.load(note.get("experience", ""))
            if generators is None:
                self._replay_demonstrations()
                for _ in range(min(10, self.epoch)):
                    self.collect()
            else:
                set_generators({"learner": self.learner.generator}, generators, self.learner.device)
                self.rng.bit_generator.state = note["rng"]

    def save(self) -> None:
        """Write the checkpoint, and beside it, until training is complete, what it goes on from."""
        note = {"updates": self.updates, "epoch": self.epoch, "meta": self.config.meta.model_dump(mode="json")}
        experience = None
        if self.updates < self.config.meta.updates:
            experience = self.experience.save(generator_states({"learner": self.learner.generator}, self.learner.device))
            note |= {"experience": experience, "rng": self.rng.bit_generator.state}
        modules = self.networks.modules() | self.learner.coefficients()
        save_checkpoint(self.checkpoint, modules=modules, optimizers=self.learner.optimizers(), note=note)
        self.experience.keep_only(experience)

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
                self.pool.add(Collected(index % count, episode.rows, path))
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
        """Let contexts be made of demonstrations too, and the policy imitate those that earn most."""
        count = self.config.meta.demonstrations
        if self.pool is not None and count:
            self.networks.to("cpu")  # offline episodes are there
            skills, horizon = self.networks.skills, self.config.skills.horizon
            self.pool.demonstrate(self.relabeller.demonstrations(skills, self.offline, count, self.config.seed))
            if self.config.meta.imitation:
                self.learner.imitated = ImitatedSkills(skills, self._best_demonstrations, horizon)
            self.networks.to(self.learner.device)

    def _replay_demonstrations(self) -> None:
        """Let critics learn from the demonstrations that earn most in each task."""
        if self.config.meta.replayed_demonstrations:
            self.networks.to("cpu")
            generator = torch.Generator().manual_seed(self.config.seed)
            for task, chosen in enumerate(self._best_demonstrations):
                for judged in chosen:
                    rows = as_transitions(self.networks.skills, judged, self.layout, self.config.skills.horizon, generator)
                    self.replay.add(task, rows)
            self.networks.to(self.learner.device)

    @cached_property
    def _best_demonstrations(self) -> list[list[Judged]]:
        count, horizon = self.config.meta.demonstrations, self.config.skills.horizon
        return best_demonstrations(self.simulator, self.tasks, self.offline, count=count, horizon=horizon)

    def _imitation(self) -> float:
        """The weight of imitation now; it falls linearly to none."""
        config = self.config.meta
        return config.imitation * max(0.0, 1 - self.updates / config.imitation_updates)

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
                    blind, imitation = self.updates < config.blind_updates, self._imitation()
                    metrics.append(self.learner.update(self.replay, self.contexts, return_bound=bounded, blind=blind, imitation=imitation))
                    self.updates += 1
                    log.advance(self.updates)
                self.epoch += 1
                means = {name: float(torch.stack([m[name] for m in metrics]).mean()) for name in metrics[0]}
                log.report(self.updates, collected | means)
                if self.epoch % config.checkpoint_epochs == 0:
                    self.save()
        self.save()
        return self.networks.to("cpu")
