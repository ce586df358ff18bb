"""The simulated domains, and how their tasks are written on a command line."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from clients.simulator.layout import Cell


@dataclass(frozen=True)
class Domain:
    """One simulated robot: its environment and the written form of its tasks."""

    name: str
    env_id: str
    task_format: str
    task_argument: str
    task_from_text: Callable[[str], Any]
    task_label: Callable[[Any], str]

    def make(self, task_text: str, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Make the environment of a written task.

        Raises:
            ValueError: the text is no task of this domain; the message says what would be.
        """
        return gym.make(self.env_id, render_mode=render_mode, **{self.task_argument: self.task_from_text(task_text)})


def cell_from_text(text: str) -> Cell:
    """Read ``ROW,COL``.

    Raises:
        ValueError: not two whole numbers. Whether the cell is free is for the environment to say.
    """
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected a task as ROW,COL in whole numbers, e.g. 12,7; got {text!r}") from None
    return row, column


def cell_label(cell: Cell) -> str:
    """Write a cell as ``ROW,COL``."""
    return f"{cell[0]},{cell[1]}"


DOMAINS = {
    "maze": Domain(
        name="maze",
        env_id="clients.simulator:skillet/PointMaze-v0",
        task_format="ROW,COL of the goal cell, e.g. 12,7",
        task_argument="goal",
        task_from_text=cell_from_text,
        task_label=cell_label,
    ),
}
"""Name on the command line -> domain."""


def find_domain(name: str) -> Domain:
    """The domain of this name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in DOMAINS:
        nearest = difflib.get_close_matches(name, DOMAINS, 1, 0.0)[0]
        raise ValueError(f"expected an environment among {', '.join(DOMAINS)}; got {name!r}, the nearest is {nearest!r}")
    return DOMAINS[name]
