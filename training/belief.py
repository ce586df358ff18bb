"""Between meta-training and serving: particles of task embeddings, and a reward decoder that weighs them (`training.contract.belief`).

With them, where the configuration asks for it, what exploring by novelty takes (`training.skill_dynamics`). Everything comes from the
training tasks, whose rewards are known: their posteriors, and episodes with the rewards that these would have earned in each task. The
networks of meta-training stay as they are.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import TrainingConfig
from training.contract.belief import FOLLOW_SKILLS, Belief
from training.contract.context import ContextLayout, Floats
from training.contract.errors import ConfigError
from training.contract.novelty import Novelty
from training.meta_learner import MetaNetworks, posterior_means
from training.networks.reward_decoder import RewardDecoder
from training.networks.skill_dynamics import SkillDynamics
from training.prior_regularised_sac import step
from training.relabelling import Relabeller
from training.replay import SkillEpisode, TaskReplay
from training.rollout import Acting, Choice, TaskSimulator, rollout
from training.run_log import RunLog
from training.skill_dynamics import fit_skill_dynamics, place_projection

CONTEXTS = 8
"""Contexts from which each training task's posterior is inferred; their spread counts as part of its scale."""


@dataclass(frozen=True)
class TrainedNovelty:
    """Coordinates of places, float32 [R, S], and the model of where skills lead."""

    places: Tensor
    dynamics: SkillDynamics

    def novelty(self) -> Novelty:
        """As sessions use it."""

        @torch.no_grad()
        def imagine(states: Floats, noise: Floats) -> tuple[Floats, Floats]:
            skills, after = self.dynamics(torch.from_numpy(states), torch.from_numpy(noise))
            return skills.numpy(), after.numpy()

        return Novelty(self.places.numpy(), imagine)


@dataclass(frozen=True)
class TrainedBelief:
    """Particles, float32 [P, E], and the reward decoder; ``novelty`` where exploring by it was asked for."""

    particles: Tensor
    decoder: RewardDecoder
    novelty: TrainedNovelty | None = None

    @classmethod
    def untrained(cls, config: TrainingConfig, networks: MetaNetworks) -> "TrainedBelief":
        """Of the configured sizes, in the networks' view of a state."""
        features, dim = networks.skills.features, config.networks.task_embedding_dim
        return cls(torch.zeros(config.belief.particles, dim), RewardDecoder(features.mean, features.std, dim, config.belief.hidden))

    @classmethod
    def load(cls, path: Path, config: TrainingConfig, networks: MetaNetworks) -> "TrainedBelief":
        """From a checkpoint. Raises ConfigError when it was learned with other settings, or from other networks.

        The checkpoints of earlier versions do not say how they were learned.
        """
        belief = cls.untrained(config, networks)
        dynamics = untrained_dynamics(config, networks) if config.belief.dynamics_updates else None
        tensors, note = load_checkpoint(path, modules={"decoder": belief.decoder} | ({"dynamics": dynamics} if dynamics else {}))
        if note and note != _origin(config, networks):
            raise ConfigError(
                f"{path} was learned with other settings of the section 'belief' or from other networks than these: run the stage 'belief' "
                "again"
            )
        novelty = TrainedNovelty(tensors["places"], dynamics.eval()) if dynamics else None
        return cls(tensors["particles"], belief.decoder.eval(), novelty)

    def save(self, path: Path, config: TrainingConfig, networks: MetaNetworks) -> None:
        """Write a checkpoint, with a note of what it was learned with."""
        modules, tensors = {"decoder": self.decoder}, {"particles": self.particles}
        if self.novelty is not None:
            modules["dynamics"], tensors["places"] = self.novelty.dynamics, self.novelty.places
        save_checkpoint(path, modules=modules, tensors=tensors, note=_origin(config, networks))

    def belief(self) -> Belief:
        """As sessions use it."""

        @torch.no_grad()
        def probability(states: Floats, embeddings: Floats) -> Floats:
            answer: Floats = self.decoder(torch.from_numpy(states), torch.from_numpy(embeddings)).numpy()
            return answer

        return Belief(self.particles.numpy(), probability, self.novelty and self.novelty.novelty())


def _origin(config: TrainingConfig, networks: MetaNetworks) -> dict[str, Any]:
    """What a belief depends on: its settings, and the networks whose embeddings it weighs."""
    digest = hashlib.sha256()
    for module in (networks.encoder, networks.policy):
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return {"belief": config.belief.model_dump(mode="json"), "networks": digest.hexdigest()}


def untrained_dynamics(config: TrainingConfig, networks: MetaNetworks) -> SkillDynamics:
    """A model of where skills lead, of the configured size, on a copy of the skill prior."""
    return SkillDynamics(copy.deepcopy(networks.skills.prior), config.skills.skill_dim, config.belief.dynamics_hidden)


@dataclass
class Sightings:
    """Where episodes were rewarded in each of T tasks, and where not.

    ``states`` [n, S]; ``in_vain`` [T, n] whether the state brought no reward in the task, before the task's episode ended; ``rewarded`` for
    each task the states [m, S] in which a reward came.
    """

    states: Floats
    in_vain: NDArray[np.bool_]
    rewarded: list[Floats]

    @classmethod
    def of(cls, episodes: Sequence[SkillEpisode], paths: Sequence[Floats], relabeller: Relabeller) -> "Sightings":
        """What each task would have said of each episode."""
        layout, tasks = relabeller.layout, len(relabeller.tasks)
        flags, rewarded = [], [[np.zeros((0, layout.state_dim), np.float32)] for _ in range(tasks)]
        for episode, path in zip(episodes, paths, strict=True):
            vain = np.ones((tasks, len(episode.rows)), bool)
            for task, seen in relabeller.rewarded(episode.rows, path).items():
                hit = seen.rows[:, layout.reward] != 0
                vain[task] = False
                vain[task, : len(hit)] = ~hit
                rewarded[task].append(seen.rows[hit, layout.next_state])
            flags.append(vain)
        states = np.concatenate([episode.rows[:, layout.next_state] for episode in episodes])
        return cls(states, np.concatenate(flags, 1), [np.concatenate(parts) for parts in rewarded])


class BeliefTrainer:
    """Explores the training tasks, infers their posteriors, lays particles around them, and fits the reward decoder."""

    def __init__(
        self, config: TrainingConfig, networks: MetaNetworks, simulator: TaskSimulator, tasks: Sequence[Any], run_dir: Path
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.networks, self.simulator, self.tasks, self.run_dir = config, networks, simulator, list(tasks), run_dir
        self.layout = ContextLayout(len(networks.skills.features.mean), config.skills.skill_dim)
        self.relabeller = Relabeller(simulator, self.tasks, self.layout, config.skills.horizon)
        self.rng = np.random.default_rng([config.seed, 0xBE11])
        self.generator = torch.Generator().manual_seed(config.seed)
        self.replay = TaskReplay(len(self.tasks), config.meta.buffer_per_task, self.layout, config.meta.discount)

    def run(self) -> TrainedBelief:
        """Half of the episodes by embeddings from the task prior, half by embeddings from the posteriors that these led to."""
        dim = self.networks.encoder.embedding_dim
        first = self._explore(lambda count: torch.randn(count, dim, generator=self.generator))
        mean, scale = self._posteriors()

        def from_posteriors(count: int) -> Tensor:
            task = torch.randint(len(mean), (count,), generator=self.generator)
            return mean[task] + scale[task] * torch.randn(count, dim, generator=self.generator)

        second = self._explore(from_posteriors)
        mean, scale = self._posteriors()
        sightings = Sightings.of([*first[0], *second[0]], [*first[1], *second[1]], self.relabeller)
        belief = TrainedBelief.untrained(self.config, self.networks)
        belief.particles.copy_(self._particles(mean, scale))
        self._fit(belief.decoder, sightings, mean, scale)
        belief.decoder.eval()
        if not self.config.belief.dynamics_updates:
            return belief
        return replace(belief, novelty=self._novelty([*first[0], *second[0]], sightings))

    def _novelty(self, episodes: Sequence[SkillEpisode], sightings: Sightings) -> TrainedNovelty:
        """From the episodes so far, and as many by the skill prior, which plans are drawn from."""
        places = torch.from_numpy(place_projection(sightings.states, sightings.rewarded))
        tasks = [self.tasks[index % len(self.tasks)] for index in range(len(episodes))]
        by_prior, _ = rollout(
            self.simulator, tasks, self.networks.policy, self.networks.skills.decoder,
            Acting.by_prior(len(tasks), self.networks.encoder.embedding_dim),
            horizon=self.config.skills.horizon, layout=self.layout, rng=self.rng,
        )  # fmt: skip
        dynamics = untrained_dynamics(self.config, self.networks)
        # A skill that the episode's end cut short says where its first steps lead.
        rows = np.concatenate([each.rows[:-1] for each in [*episodes, *by_prior]])
        fit_skill_dynamics(dynamics, rows, self.layout, self.config.belief, self.run_dir, self.config.seed)
        return TrainedNovelty(places, dynamics.eval())

    def _explore(self, draw: Any) -> tuple[list[SkillEpisode], list[Floats]]:
        """Episodes of all training tasks in turn that switch embeddings; what they earn in each task goes into its replay."""
        count = -(-self.config.belief.episodes // 2)
        tasks = [self.tasks[index % len(self.tasks)] for index in range(count)]
        embeddings: list[Tensor] = []

        def redraw(skill_index: int, states: Floats, active: NDArray[np.intp], earned: Floats) -> Choice:
            while len(embeddings) <= skill_index // FOLLOW_SKILLS:
                embeddings.append(draw(count))
            return Choice(embeddings[skill_index // FOLLOW_SKILLS])

        acting = Acting(torch.zeros(0), torch.zeros(count, dtype=torch.bool), redraw=redraw)
        episodes, paths = rollout(
            self.simulator, tasks, self.networks.policy, self.networks.skills.decoder, acting,
            horizon=self.config.skills.horizon, layout=self.layout, rng=self.rng, paths=True,
        )  # fmt: skip
        for index, (episode, path) in enumerate(zip(episodes, paths, strict=True)):
            self.replay.add(index % len(self.tasks), episode.rows)
            for task, seen in self.relabeller.rewarded(episode.rows, path).items():
                if task != index % len(self.tasks):
                    self.replay.add(task, seen.rows)
        return episodes, paths

    def _posteriors(self) -> tuple[Tensor, Tensor]:
        """Means and scales [T, E] of the training tasks' posteriors, over several contexts each."""
        everything, count = range(len(self.tasks)), self.config.meta.posterior_context
        drawn = [posterior_means(self.networks, self.replay, everything, count, self.generator) for _ in range(CONTEXTS)]
        means, scales = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        return means.mean(0), (scales.square().mean(0) + means.var(0)).sqrt()

    def _particles(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Particles [P, E] around the posteriors, on the way from each to its neighbours and away from them, some from the task prior."""
        config, (tasks, dim) = self.config.belief, mean.shape
        count = config.particles - round(config.prior_share * config.particles)
        near = torch.cdist(mean, mean).argsort(1)[:, 1 : config.neighbours + 1]  # [T, neighbours]
        task = torch.randint(tasks, (count,), generator=self.generator)
        other = near[task, torch.randint(near.shape[1], (count,), generator=self.generator)] if near.shape[1] else task
        share = config.interpolation * (2 * torch.rand(count, 1, generator=self.generator) - 1)
        noise = config.widening * scale[task] * torch.randn(count, dim, generator=self.generator)
        between = mean[task] + share * (mean[other] - mean[task]) + noise
        return torch.cat([between, torch.randn(config.particles - count, dim, generator=self.generator)])

    def _fit(self, decoder: RewardDecoder, sightings: Sightings, mean: Tensor, scale: Tensor) -> None:
        config = self.config.belief
        optimizer = torch.optim.AdamW(decoder.parameters(), config.learning_rate, weight_decay=1e-3)
        known = np.flatnonzero([len(states) > 0 for states in sightings.rewarded])
        if not len(known):
            raise ConfigError(
                f"a reward decoder learns from rewards, and none of the {len(sightings.rewarded)} training tasks was rewarded: "
                f"raise belief.episodes (now {config.episodes}), or train the meta-policy for longer"
            )
        with RunLog(self.run_dir, "belief", config.updates, "updates") as log:
            for update in range(config.updates):
                state, task, label, weight = self._batch(sightings, known)
                embedding = mean[task] + config.widening * scale[task] * torch.randn(len(task), mean.shape[1], generator=self.generator)
                losses = functional.binary_cross_entropy_with_logits(decoder.logits(state, embedding), label, reduction="none")
                loss = (weight * losses).sum() / weight.sum().clamp(min=1.0)
                step(optimizer, loss)
                if (update + 1) % 100 == 0 or update + 1 == config.updates:
                    log.report(update + 1, {"loss": float(loss.detach())})

    def _batch(self, sightings: Sightings, known: NDArray[np.intp]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States [B, S], tasks [B], whether rewarded [B], and weights [B]: 0 for what the task does not tell."""
        config = self.config.belief
        task = known[self.rng.integers(len(known), size=config.batch)]
        index = self.rng.integers(len(sightings.states), size=config.batch)
        state, weight = sightings.states[index], sightings.in_vain[task, index].astype(np.float32)
        rewarded = round(config.rewarded_share * config.batch)
        for row in range(rewarded):
            seen = sightings.rewarded[task[row]]
            state[row] = seen[self.rng.integers(len(seen))]
        weight[:rewarded] = 1.0
        label = np.arange(config.batch) < rewarded
        return torch.from_numpy(state), torch.from_numpy(task), torch.from_numpy(label.astype(np.float32)), torch.from_numpy(weight)
