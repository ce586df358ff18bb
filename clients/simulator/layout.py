"""The maze as facts: its layout, start, goals of each split, and which cells can be goals."""

import json
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, Final

import numpy as np

Cell = tuple[int, int]
"""A cell as (row, column); its centre is at position (row, column)."""

WALL: Final = "#"
SPLITS: Final[dict[str, str]] = {
    "train": "train_goals_40",
    "train_20": "train_goals_20",
    "train_10": "train_goals_10",
    "test": "test_goals",
    "narrow_train": "narrow_train_goals",
    "narrow_top_test": "narrow_top_test_goals",
    "narrow_bottom_test": "narrow_bottom_test_goals",
}
"""Name of each set of tasks -> its key in the data file."""


@dataclass(frozen=True)
class Maze:
    """The facts of one maze: rows of ``#`` (wall) and ``O`` (free), the start, the goal radius and the goals of each split."""

    layout: tuple[str, ...]
    start: Cell
    start_noise: float
    goal_radius: float
    episode_steps: int
    goals: dict[str, tuple[Cell, ...]]

    @cached_property
    def free_cells(self) -> tuple[Cell, ...]:
        """The cells that can be reached from the start, row by row. Free cells behind closed walls are not among them."""
        seen, queue = {self.start}, deque([self.start])
        while queue:
            row, column = queue.popleft()
            for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if self.layout[cell[0]][cell[1]] != WALL and cell not in seen:
                    seen.add(cell)
                    queue.append(cell)
        return tuple(sorted(seen))

    def tasks(self, split: str) -> tuple[Cell, ...]:
        """The goal cells of a split.

        Raises:
            ValueError: there is no such split; the message lists them.
        """
        if split not in self.goals:
            raise ValueError(f"expected a split, one of {', '.join(self.goals)}; got {split!r}")
        return self.goals[split]

    def check_cell(self, cell: Any, what: str = "goal") -> Cell:
        """Return ``cell`` as two ints when the robot can get there.

        Raises:
            ValueError: not two whole numbers, outside the maze, in a wall or closed in; the message names the nearest cell that will do.
        """
        values = np.asarray(cell, dtype=np.float64) if _is_numeric(cell) else np.empty(0)
        if values.shape != (2,) or not np.isfinite(values).all() or (values != np.round(values)).any():
            raise ValueError(f"expected a {what} cell as two whole numbers (row, column), got {cell!r}")
        row, column = int(values[0]), int(values[1])
        if (row, column) in self.free_cells:
            return row, column
        nearest = min(self.free_cells, key=lambda free: (free[0] - row) ** 2 + (free[1] - column) ** 2)
        raise ValueError(f"the {what} cell ({row}, {column}) is {self._obstacle(row, column)}; the nearest free cell is {nearest}")

    def _obstacle(self, row: int, column: int) -> str:
        rows, columns = len(self.layout), len(self.layout[0])
        if not (0 <= row < rows and 0 <= column < columns):
            return f"outside the maze of {rows} rows and {columns} columns"
        return "in a wall" if self.layout[row][column] == WALL else "closed in by walls"


def _is_numeric(cell: Any) -> bool:
    try:
        np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


def load_maze() -> Maze:
    """Read the maze of the package's data file."""
    facts = json.loads(files("clients.simulator").joinpath("data/maze.json").read_text())
    return Maze(
        layout=tuple(facts["layout"]),
        start=(facts["start"][0], facts["start"][1]),
        start_noise=facts["start_noise"],
        goal_radius=facts["goal_radius"],
        episode_steps=facts["episode_steps"],
        goals={split: tuple((row, column) for row, column in facts[key]) for split, key in SPLITS.items()},
    )
