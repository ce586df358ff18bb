"""The demonstrations that would earn most in each training task, and what meta-training takes from them: transitions, skills to imitate.

The training tasks' rewards are known, so reward-free demonstrations can be judged in each of them, as `training.relabelling` judges
episodes. Where the skill prior hardly ever does a task's subtasks in its order by chance, a policy that begins at the prior does not find
that order: critics see in these transitions what it brings, and the policy is drawn to what brought it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from training.contract.context import ContextLayout, Floats
from training.data import Episode
from training.networks.skill_model import SkillModel
from training.rollout import TaskSimulator

RETURN_TEMPERATURE: Final = 0.5
"""A demonstration that earns one reward more is imitated e^2 times as often."""


@dataclass(frozen=True)
class Judged:
    """An offline episode as it would have gone in a task: rewards [n] of its steps, the step after its end, whether it terminates there."""

    episode: Episode
    rewards: Floats
    end: int
    terminated: bool

    @property
    def earned(self) -> float:
        """Its return."""
        return float(self.rewards.sum())

    @property
    def last_reward(self) -> int:
        """The step of its last reward."""
        return int(np.flatnonzero(self.rewards)[-1])


def best_demonstrations(
    simulator: TaskSimulator, tasks: Sequence[Any], episodes: Sequence[Episode], *, count: int, horizon: int
) -> list[list[Judged]]:
    """For each task the ``count`` episodes that earn most in it, best first.

    Those that earn nothing, or end within their first skill, do not count.
    """
    found: list[list[Judged]] = [[] for _ in tasks]
    for episode in episodes:
        rewards, ends, terminated = simulator.judge(episode.observations, tasks)
        for task in np.flatnonzero(rewards.any(1)):
            if ends[task] >= horizon:
                found[task].append(Judged(episode, rewards[task], int(ends[task]), bool(terminated[task])))
    return [sorted(candidates, key=lambda judged: -judged.earned)[:count] for candidates in found]


@torch.no_grad()
def as_transitions(skills: SkillModel, judged: Judged, layout: ContextLayout, horizon: int, generator: torch.Generator) -> Floats:
    """A demonstration's skill transitions [n, D], its skills drawn from the skill encoder.

    Skills begin where those of an episode of one's own do, at the first step and every ``H`` steps. What is left at the end goes into one
    more that ends there and overlaps the one before it.
    """
    whole = judged.end // horizon
    starts = [*range(0, whole * horizon, horizon)]
    if judged.end > whole * horizon:
        starts.append(judged.end - horizon)
    states, actions = _windows(judged.episode, starts, horizon)
    mean, std = skills.encoder(states, actions)
    rows = np.zeros((len(starts), layout.width), np.float32)
    rows[:, layout.state] = states[:, 0]
    rows[:, layout.skill] = mean + std * torch.randn(std.shape, generator=generator)
    rows[:, layout.next_state] = judged.episode.observations[np.array(starts) + horizon]
    rows[:, layout.reward] = np.add.reduceat(judged.rewards[: judged.end], np.arange(0, judged.end, horizon))
    rows[-1, layout.terminated] = float(judged.terminated)
    return rows


class ImitatedSkills:
    """For each task the states in which its `best_demonstrations` would choose a skill, and the skills that they chose.

    Skills begin at a demonstration's first step and every ``H`` steps, as the first choices decide what comes first, and one ends with it.
    Only those that begin before its last reward count.
    """

    def __init__(self, skills: SkillModel, demonstrations: Sequence[Sequence[Judged]], horizon: int) -> None:
        self._of_task = {task: _Imitated.of(skills, chosen, horizon) for task, chosen in enumerate(demonstrations) if chosen}

    @property
    def known(self) -> set[int]:
        """Tasks in which some demonstration earns anything."""
        return set(self._of_task)

    def sample(self, tasks: Sequence[int], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States [T, count, S] and skills [T, count, Z], drawn from the skill encoder, of each task; every one of them `known`."""
        states, skills = zip(*(self._of_task[task].sample(count, generator) for task in tasks), strict=True)
        return torch.stack(states), torch.stack(skills)


@dataclass(frozen=True)
class _Imitated:
    states: Tensor
    means: Tensor
    stds: Tensor
    weights: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, skills: SkillModel, chosen: Sequence[Judged], horizon: int) -> "_Imitated":
        states, means, stds, weights = [], [], [], []
        most = max(judged.earned for judged in chosen)
        for judged in chosen:
            last = len(judged.episode) - horizon
            starts = [start for start in (*range(0, last, horizon), last) if start <= judged.last_reward]
            windows, actions = _windows(judged.episode, starts, horizon)
            mean, std = skills.encoder(windows, actions)
            states.append(windows[:, 0])
            means.append(mean)
            stds.append(std)
            weights.append(torch.full((len(starts),), float(np.exp((judged.earned - most) / RETURN_TEMPERATURE))))
        return cls(*(torch.cat(parts) for parts in (states, means, stds, weights)))

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        skills = self.means[index] + self.stds[index] * torch.randn(count, self.stds.shape[-1], generator=generator)
        return self.states[index], skills


def _windows(episode: Episode, starts: Sequence[int], horizon: int) -> tuple[Tensor, Tensor]:
    """Observations [n, H, S] and actions [n, H, A] of the skills that begin at these steps."""
    at = np.array(starts)[:, None] + np.arange(horizon)
    return torch.from_numpy(episode.observations[at]), torch.from_numpy(episode.actions[at])
