"""The kitchen as facts: its subtasks, when each is done, what an ordered sequence of them earns, and the sequences of each split."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SubtaskOrder = tuple[str, ...]
"""A task: four distinct subtasks, in the order in which they pay."""

TASK_LENGTH: Final = 4
SPLITS: Final[dict[str, tuple[str, ...]]] = {
    "train": ("train_tasks",),
    "train-sisl": ("train_tasks", "further_train_tasks"),
    "test": ("test_tasks",),
}
"""Name of each set of tasks -> its keys in the data file.

``train-sisl`` has the 25 training tasks of "Self-Improving Skill Learning" (ICLR 2026)."""


@dataclass(frozen=True)
class Kitchen:
    """The facts of the kitchen: for each subtask the entries of the state that it concerns and their goal; the tasks of each split."""

    subtasks: tuple[str, ...]
    entries: dict[str, tuple[int, ...]]
    goals: dict[str, tuple[float, ...]]
    threshold: float
    episode_steps: int
    splits: dict[str, tuple[SubtaskOrder, ...]]

    def tasks(self, split: str) -> tuple[SubtaskOrder, ...]:
        """The tasks of a split.

        Raises:
            ValueError: there is no such split; the message lists them.
        """
        if split not in self.splits:
            raise ValueError(f"expected a split, one of {', '.join(self.splits)}; got {split!r}")
        return self.splits[split]

    def check_task(self, task: Any) -> SubtaskOrder:
        """Return ``task`` as a tuple of names when it is four distinct subtasks.

        Raises:
            ValueError: a wrong name (the message says the nearest right one), a repeated one, or another number of them.
        """
        if isinstance(task, str) or not isinstance(task, Sequence):
            raise ValueError(f"expected a sequence of {TASK_LENGTH} subtask names, got {task!r}")
        for name in task:
            if name not in self.subtasks:
                nearest = difflib.get_close_matches(str(name), self.subtasks, 1, 0.0)[0]
                raise ValueError(f"expected subtasks among {', '.join(self.subtasks)}; got {name!r}, the nearest is {nearest!r}")
        if len(task) != TASK_LENGTH or len(set(task)) != TASK_LENGTH:
            raise ValueError(f"expected {TASK_LENGTH} distinct subtasks, got {len(task)}: {', '.join(task)}")
        return tuple(task)

    def done(self, states: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which subtasks [..., 7] are done in states [..., 30]: their entries lie within ``threshold`` (L2 norm) of their goal."""
        states = np.asarray(states, np.float64)
        distances = [np.linalg.norm(states[..., self._indices[name]] - self.goals[name], axis=-1) for name in self.subtasks]
        return np.stack(distances, axis=-1) < self.threshold

    def pay(self, done: NDArray[np.bool_], task: SubtaskOrder, finished: int = 0) -> int:
        """How many of a task's subtasks are finished after a state, of which ``finished`` were before it.

        ``done`` [7] is that state's. A subtask pays when all before it have paid and it is done; one done early pays, if it still is,
        together with the last of its predecessors.
        """
        while finished < len(task) and done[self.subtasks.index(task[finished])]:
            finished += 1
        return finished

    def judge(
        self, path: NDArray[np.floating], tasks: Sequence[SubtaskOrder]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.bool_]]:
        """What a path of states [n + 1, 30] would have earned in each of ``T`` tasks. Its first state pays nothing.

        Returns:
            Rewards [T, n] float32, the number of steps until the task ends [T] (n when it does not), and whether it was completed [T].
        """
        done = self.done(path[1:])
        rewards = np.zeros((len(tasks), len(done)), np.float32)
        ends, success = np.full(len(tasks), len(done)), np.zeros(len(tasks), np.bool_)
        for row, task in enumerate(tasks):
            first = 0
            for name in task:
                later = done[first:, self.subtasks.index(name)]
                if not later.any():
                    break
                first += int(later.argmax())
                rewards[row, first] += 1
            else:
                ends[row], success[row] = first + 1, True
        return rewards, ends, success

    @cached_property
    def _indices(self) -> dict[str, list[int]]:
        return {name: list(entries) for name, entries in self.entries.items()}


def load_kitchen() -> Kitchen:
    """Read the kitchen of the package's data file."""
    facts = json.loads(files("clients.simulator").joinpath("data/kitchen.json").read_text())
    return Kitchen(
        subtasks=tuple(facts["subtasks"]),
        entries={name: tuple(entries) for name, entries in facts["qpos"].items()},
        goals={name: tuple(goal) for name, goal in facts["goals"].items()},
        threshold=facts["completion_threshold"],
        episode_steps=facts["episode_steps"],
        splits={split: tuple(tuple(task) for key in keys for task in facts[key]) for split, keys in SPLITS.items()},
    )
