"""Replay of skill transitions, one ring for each task; each row knows its discounted return and its episode's total."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.contract.context import ContextLayout, Floats


def discounted_returns(rewards: Floats, discount: float) -> NDArray[np.float64]:
    """Discounted sums of an episode's rewards [n] from each transition to the end, [n]."""
    returns, following = np.zeros(len(rewards)), 0.0
    for step in range(len(rewards) - 1, -1, -1):
        returns[step] = following = float(rewards[step]) + discount * following
    return returns


@dataclass(frozen=True)
class SkillEpisode:
    """One episode in skill transitions [n, D], with the environment steps it took."""

    rows: Floats
    steps: int
    episode_return: float
    success: bool


@dataclass(frozen=True)
class Batch:
    """Skill transitions by part: [..., S], [..., Z], [...], [...], [..., S]; the discounted return of the rest of the episode [...].

    ``best`` [...] is 1 where a transition was drawn as one of the task's best episodes, else 0.
    """

    state: Tensor
    skill: Tensor
    reward: Tensor
    terminated: Tensor
    next_state: Tensor
    discounted_return: Tensor
    best: Tensor

    def to(self, device: str) -> "Batch":
        """The batch on a device."""
        return Batch(*(t.to(device) for t in self._parts()))

    @staticmethod
    def stack(batches: "Sequence[Batch]") -> "Batch":
        """Batches of one shape [...] as one [S, ...]."""
        return Batch(*(torch.stack(parts) for parts in zip(*(batch._parts() for batch in batches), strict=True)))

    def _parts(self) -> tuple[Tensor, ...]:
        return (self.state, self.skill, self.reward, self.terminated, self.next_state, self.discounted_return, self.best)

    def flat(self) -> "Batch":
        """Tasks and transitions in one axis."""
        return Batch(*(t.flatten(0, 1) for t in self._parts()))


class TaskReplay:
    """Rings of ``capacity`` skill transitions for each of ``T`` tasks.

    ``rare_best``: episodes that earned more than three quarters are the best alone, however few, and not together with their equals at
    the quarter.
    """

    def __init__(self, tasks: int, capacity: int, layout: ContextLayout, discount: float, *, rare_best: bool = False) -> None:
        self.layout, self.capacity, self.discount, self.rare_best = layout, capacity, discount, rare_best
        self.rows = torch.zeros(tasks, capacity, layout.width)
        self.discounted_return = torch.zeros(tasks, capacity)
        self.episode_return = torch.zeros(tasks, capacity)
        self.added = np.zeros(tasks, np.int64)
        self._best: list[Tensor | None] = [None] * tasks
        self._rewarded: list[Tensor | None] = [None] * tasks

    def __len__(self) -> int:
        """Rows held, all tasks together."""
        return int(np.minimum(self.added, self.capacity).sum())

    def size(self, task: int) -> int:
        """Rows held of one task."""
        return int(min(self.added[task], self.capacity))

    def add(self, task: int, rows: Floats) -> None:
        """Add one whole episode [n, D]."""
        if len(rows) > self.capacity:
            raise ValueError(f"an episode of {len(rows)} skill transitions does not fit a replay of {self.capacity}")
        rewards = rows[:, self.layout.reward]
        returned = discounted_returns(rewards, self.discount).astype(np.float32)
        if rewards.min(initial=0.0) < 0 and not rows[-1, self.layout.terminated]:
            returned[:] = -np.inf  # it was cut short, and what would have followed may be worse: no lower bound of a value
        at = torch.from_numpy((self.added[task] + np.arange(len(rows))) % self.capacity)
        self.rows[task, at] = torch.from_numpy(rows)
        self.discounted_return[task, at] = torch.from_numpy(returned)
        self.episode_return[task, at] = float(rewards.sum())
        self.added[task] += len(rows)
        self._best[task] = self._rewarded[task] = None

    def held(self) -> dict[str, Tensor]:
        """All that it holds, for `hold`."""
        filled = int(np.minimum(self.added, self.capacity).max(initial=0))
        each = {name: getattr(self, name)[:, :filled] for name in ("rows", "discounted_return", "episode_return")}
        return each | {"added": torch.from_numpy(self.added)}

    def hold(self, held: Mapping[str, Tensor]) -> None:
        """Hold what another replay of the same size held (`held`)."""
        filled = held["rows"].shape[1]
        for name in ("rows", "discounted_return", "episode_return"):
            getattr(self, name)[:, :filled] = held[name]
        self.added = held["added"].numpy().copy()
        self._best, self._rewarded = [None] * len(self.added), [None] * len(self.added)

    def best_rows(self, task: int) -> Tensor:
        """Indices of the rows of rewarded episodes whose return is in the task's upper quarter (every one of them, where few have any).

        Where returns are a few round numbers, as many as most may be at the quarter; see ``rare_best``.
        """
        best = self._best[task]
        if best is None:
            returns = self.episode_return[task, : self.size(task)]
            best = torch.empty(0, dtype=torch.long)
            if len(returns):
                quarter = torch.quantile(returns, 0.75)
                above = returns > quarter
                best = torch.nonzero((returns > 0) & (above if self.rare_best and above.any() else returns >= quarter)).flatten()
            self._best[task] = best
        return best

    def rewarded_rows(self, task: int) -> Tensor:
        """Indices of the rows with a reward."""
        rewarded = self._rewarded[task]
        if rewarded is None:
            rewarded = torch.nonzero(self.rows[task, : self.size(task), self.layout.reward] != 0).flatten()
            self._rewarded[task] = rewarded
        return rewarded

    def sample(self, tasks: list[int], batch: int, best_share: float, generator: torch.Generator) -> Batch:
        """``batch`` transitions of each task, [T, batch, ...]; ``best_share`` of them from its best episodes, where it has any."""
        wanted = round(batch * best_share)
        chosen, drawn_as_best = [], torch.zeros(len(tasks), batch)
        for row, task in enumerate(tasks):
            best = self.best_rows(task)
            good = best[torch.randint(len(best), (wanted,), generator=generator)] if len(best) else best
            chosen.append(torch.cat([good, torch.randint(self.size(task), (batch - len(good),), generator=generator)]))
            drawn_as_best[row, : len(good)] = 1.0
        index = torch.stack(chosen)
        task_index = torch.tensor(tasks)[:, None]
        return self.split(self.rows[task_index, index], self.discounted_return[task_index, index], drawn_as_best)

    def split(self, rows: Tensor, discounted_return: Tensor, best: Tensor) -> Batch:
        """Rows [..., D] by part."""
        layout = self.layout
        return Batch(
            rows[..., layout.state],
            rows[..., layout.skill],
            rows[..., layout.reward],
            rows[..., layout.terminated],
            rows[..., layout.next_state],
            discounted_return,
            best,
        )

    def sample_context(self, tasks: list[int], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A context of ``count`` transitions of each task, [T, count, D], and its mask [T, count] of ones.

        Rewarded transitions are rare and say most. Their number is drawn between none and half of the context, log-uniformly, so that the
        encoder knows contexts with many and with few, as `select_context` makes them when serving.
        """
        chosen = []
        for task in tasks:
            rewarded = self.rewarded_rows(task)
            limit = min(len(rewarded), count // 2)
            some = 0
            if limit and float(torch.rand((), generator=generator)) > 0.1:
                some = int(torch.exp(torch.rand((), generator=generator) * np.log(limit + 1)).clamp(1, limit))
            hits = rewarded[torch.randint(len(rewarded), (some,), generator=generator)] if some else torch.empty(0, dtype=torch.long)
            chosen.append(torch.cat([hits, torch.randint(self.size(task), (count - some,), generator=generator)]))
        return self.rows[torch.tensor(tasks)[:, None], torch.stack(chosen)], torch.ones(len(tasks), count)
