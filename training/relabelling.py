"""Episodes with the rewards that they would have earned in other tasks (hindsight relabelling, Andrychowicz et al. 2017).

Skills do not depend on the task, so an episode's transitions stay true in every task; only rewards, the end and the last next state change.
The training tasks' rewards are known, as in SiMPL's meta-training; that they are computed for every episode is Skillet's addition.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from training.contract.context import ContextLayout, Floats
from training.data import Episode
from training.networks.skill_model import SkillModel
from training.replay import SkillEpisode
from training.rollout import TaskSimulator

InEachTask = list[Floats]
"""One episode's rows [n, D] as they would have been in each task."""


def weights_by_return(
    simulator: TaskSimulator, tasks: Sequence[Any], episodes: Sequence[Episode], *, discount: float, temperature: float
) -> Floats:
    """exp(G / temperature) for each of the episodes, at most 1; G is what it would have earned at best in a task, discounted by the step.

    Of noisy demonstrations, those that reach something soon show skills best (maximum return relabelling: SISL, ICLR 2026).
    """
    best = np.zeros(len(episodes))
    for index, episode in enumerate(episodes):
        rewards, _, _ = simulator.judge(episode.observations, tasks)
        best[index] = (rewards @ discount ** np.arange(rewards.shape[1])).max()
    weights: Floats = np.exp((best - best.max()) / temperature).astype(np.float32)
    return weights


class Relabeller:
    """Knows the tasks and how a simulator judges paths in them."""

    def __init__(self, simulator: TaskSimulator, tasks: Sequence[Any], layout: ContextLayout, horizon: int) -> None:
        self.simulator, self.tasks, self.layout, self.horizon = simulator, list(tasks), layout, horizon

    def all(self, rows: Floats, path: Floats) -> list[SkillEpisode]:
        """An episode's rows [n, D] and path [steps + 1, S] as they would have gone in each task."""
        return list(self._relabelled(rows, path, only_rewarded=False).values())

    def rewarded(self, rows: Floats, path: Floats) -> dict[int, SkillEpisode]:
        """The same by the number of each task, for those in which the episode earns a reward."""
        return self._relabelled(rows, path, only_rewarded=True)

    def _relabelled(self, rows: Floats, path: Floats, *, only_rewarded: bool) -> dict[int, SkillEpisode]:
        rewards, ends, terminated = self.simulator.judge(path, self.tasks)
        return {
            int(task): self._relabel(rows, path, rewards[task], int(ends[task]), terminated=bool(terminated[task]))
            for task in (np.flatnonzero(rewards.any(1)) if only_rewarded else range(len(self.tasks)))
        }

    @torch.no_grad()
    def demonstrations(self, skills: SkillModel, episodes: Sequence[Episode], count: int, seed: int) -> list[list[InEachTask]]:
        """For each task the ``count`` offline episodes that earn most in it, in skills drawn from the skill encoder."""
        generator = torch.Generator().manual_seed(seed)
        found: list[list[tuple[float, InEachTask]]] = [[] for _ in self.tasks]
        for episode in episodes:
            skipped = len(episode) % self.horizon  # windows end with the episode, where the last reward is
            path = episode.observations[skipped:]
            if len(path) > self.horizon:
                rows = self._encode(skills, path, episode.actions[skipped:], generator)
                in_each = self.all(rows, path)
                for earned, candidates in zip(in_each, found, strict=True):
                    if earned.episode_return:
                        candidates.append((earned.episode_return, [each.rows for each in in_each]))
        return [[each for _, each in sorted(candidates, key=lambda found: -found[0])[:count]] for candidates in found]

    def _encode(self, skills: SkillModel, path: Floats, actions: Floats, generator: torch.Generator) -> Floats:
        """Skill transitions [n, D] of a path [n H + 1, S], without rewards."""
        starts = np.arange(0, len(actions), self.horizon)
        windows = starts[:, None] + np.arange(self.horizon)
        mean, std = skills.encoder(torch.from_numpy(path[windows]), torch.from_numpy(actions[windows]))
        chosen = mean + std * torch.randn(mean.shape, generator=generator)
        blank = np.zeros((len(starts), 2))
        return np.concatenate([path[starts], chosen.numpy(), blank, path[starts + self.horizon]], 1).astype(np.float32)

    def _relabel(self, rows: Floats, path: Floats, rewards: Floats, steps: int, *, terminated: bool) -> SkillEpisode:
        """An episode as it would have gone in another task: rewards [n], ended after ``steps``."""
        layout, count = self.layout, -(-steps // self.horizon)
        rows = rows[:count].copy()
        rows[:, layout.reward] = np.add.reduceat(rewards[:steps], np.arange(0, steps, self.horizon))
        rows[:, layout.terminated] = 0.0
        rows[-1, layout.terminated] = float(terminated)
        rows[-1, layout.next_state] = path[steps]
        return SkillEpisode(rows, steps, float(rewards[:steps].sum()), terminated)
