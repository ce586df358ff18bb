"""What contexts are made of in meta-training: episodes of all tasks, with the rewards that they would have earned in the one at hand.

A context drawn from a task's own replay gives the task away by how the robot behaves in it, and an encoder that reads the behaviour is
sure of whatever the robot has been trying. Here every task's contexts are made of the same episodes, and only the rewards tell tasks apart.

What the policy has not learned yet shows in no episode of its own: where the last subtask is the hard one, contexts of its own episodes say
the same of every task that begins alike, and a policy that cannot tell them apart never learns that subtask. Demonstrations show it.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.contract.context import Floats
from training.relabelling import InEachTask, Relabeller

MOST_EPISODES = 20
"""Episodes in the largest context: as many as conditioning takes in SiMPL."""

DEMONSTRATED = 0.5
"""Share of the contexts that hold demonstrations, where there are any."""


@dataclass(frozen=True)
class Collected:
    """An episode of skill transitions ``rows`` [n, D], collected for the task of this number, and its ``path`` [steps + 1, S]."""

    task: int
    rows: Floats
    path: Floats


class ContextPool:
    """The newest ``capacity`` episodes of all tasks together, and demonstrations, which stay."""

    def __init__(self, relabeller: Relabeller, capacity: int) -> None:
        self.relabeller, self.capacity = relabeller, capacity
        self._episodes: deque[InEachTask] = deque(maxlen=capacity)
        self._own: list[deque[InEachTask]] = [deque(maxlen=MOST_EPISODES) for _ in relabeller.tasks]
        self._collected: list[Collected] = []
        self._demonstrations: list[InEachTask] = []
        self._own_demonstrations: list[Sequence[InEachTask]] = [() for _ in relabeller.tasks]

    def size(self, task: int) -> int:
        """Episodes that there are to make contexts of, the same for every task."""
        return len(self._episodes)

    def add(self, collected: Collected) -> None:
        """Add an episode."""
        pooled = [each.rows for each in self.relabeller.all(collected.rows, collected.path)]
        self._episodes.append(pooled)
        self._own[collected.task].append(pooled)
        self._collected.append(collected)
        if len(self._collected) > 2 * (self.capacity + MOST_EPISODES * len(self._own)):
            self._collected = self.collected()

    def collected(self) -> list[Collected]:
        """The episodes that contexts may be made of, demonstrations apart, from the oldest; added to an empty pool, they make the same."""
        of_task, kept = Counter[int](), []
        for newer, each in enumerate(reversed(self._collected)):
            of_task[each.task] += 1
            if newer < self.capacity or of_task[each.task] <= MOST_EPISODES:
                kept.append(each)
        return kept[::-1]

    def demonstrate(self, chosen: Sequence[Sequence[InEachTask]]) -> None:
        """Make contexts of demonstrations too: for each task those that earn most in it."""
        self._own_demonstrations = list(chosen)
        self._demonstrations = [episode for episodes in chosen for episode in episodes]

    def sample_context(self, tasks: list[int], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Contexts of up to ``count`` transitions of each task, [T, N, D], and their mask [T, N] (1 real, 0 padding).

        Each is made of one to `MOST_EPISODES` episodes, log-uniformly; a share of them, drawn uniformly, was collected for the task itself,
        as it is once a session begins to succeed. In `DEMONSTRATED` of the contexts a further share, drawn likewise, are demonstrations in
        the place of episodes that were collected. Rewarded transitions take up to half of it, as `select_context` has them when serving.
        """
        contexts = [self._context(task, count, generator) for task in tasks]
        longest = max(map(len, contexts))
        rows = np.zeros((len(tasks), longest, self.relabeller.layout.width), np.float32)
        mask = np.zeros((len(tasks), longest), np.float32)
        for index, context in enumerate(contexts):
            rows[index, : len(context)], mask[index, : len(context)] = context, 1.0
        return torch.from_numpy(rows), torch.from_numpy(mask)

    def _context(self, task: int, count: int, generator: torch.Generator) -> Floats:
        episodes = round(MOST_EPISODES ** _uniform(generator))
        own_share = _uniform(generator)
        demonstrated = _uniform(generator) if self._demonstrations and _uniform(generator) < DEMONSTRATED else 0.0
        rows = np.concatenate([self._draw(task, own_share, demonstrated, generator)[task] for _ in range(episodes)])
        order = torch.randperm(len(rows), generator=generator).numpy()
        rewarded = rows[order, self.relabeller.layout.reward] != 0
        hits, misses = order[rewarded], order[~rewarded]
        kept = hits[: max(count // 2, count - len(misses))]
        return rows[np.concatenate([kept, misses[: count - len(kept)]])]

    def _draw(self, task: int, own_share: float, demonstrated: float, generator: torch.Generator) -> InEachTask:
        own, everyones = self._own[task], self._episodes
        if demonstrated and (_uniform(generator) < demonstrated or not everyones):
            own, everyones = self._own_demonstrations[task], self._demonstrations
        among = own if own and _uniform(generator) < own_share else everyones
        return among[int(torch.randint(len(among), (), generator=generator))]


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
