"""The simulated domains, and how their tasks are written on a command line."""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from clients.simulator.layout import Cell
from clients.simulator.report import EpisodeResult
from clients.simulator.subtasks import SubtaskOrder, load_kitchen


@dataclass(frozen=True)
class FinishedRun:
    """What there is to draw of a run: observations [T + 1, S] by episode number, the episodes, K, the task's subtasks in their order."""

    env: gym.Env[Any, Any]
    paths: Mapping[int, NDArray[np.float32]]
    results: Sequence[EpisodeResult]
    conditioning: int
    subtasks: Sequence[str] = ()


RunPlot = Callable[[FinishedRun, Path], str | None]
"""Draws a run, of at least one episode, into a file. Returns what the picture lacks and why, when it lacks anything."""


@dataclass(frozen=True)
class Domain:
    """One simulated robot: its environment and the written form of its tasks."""

    name: str
    env_id: str
    task_format: str
    task_argument: str
    task_from_text: Callable[[str], Any]
    task_label: Callable[[Any], str]
    plot: RunPlot | None = None
    subtasks: Callable[[str], Sequence[str]] = lambda text: ()
    """The subtasks of a written task in the order in which they pay; none where a task is all or nothing."""

    def make(self, task_text: str, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Make the environment of a written task.

        Raises:
            ValueError: the text is no task of this domain, or the simulator cannot be loaded; the message says what to do.
        """
        load_simulator()
        return gym.make(self.env_id, render_mode=render_mode, **{self.task_argument: self.task_from_text(task_text)})


def load_simulator() -> None:
    """Import MuJoCo, which loads the graphics library that ``MUJOCO_GL`` names, when that is set.

    Raises:
        ValueError: that library is not installed; the message says which to install.
    """
    try:
        import mujoco  # noqa: F401
    except Exception as error:  # a missing library surfaces as ImportError, AttributeError, OSError or an error of PyOpenGL
        backend = os.environ.get("MUJOCO_GL")
        if not backend:
            raise
        raise ValueError(
            f"MuJoCo cannot be loaded with MUJOCO_GL={backend} ({type(error).__name__}: {error}). On Linux install libegl1 (with Mesa: "
            "libgl1-mesa-dri) for egl, libosmesa6 for osmesa; or unset MUJOCO_GL"
        ) from error


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


def subtasks_from_text(text: str) -> SubtaskOrder:
    """Read ``SUBTASK,SUBTASK,SUBTASK,SUBTASK``.

    Raises:
        ValueError: not four distinct subtasks of the kitchen; the message names the nearest right name.
    """
    return load_kitchen().check_task([part.strip().lower() for part in text.split(",")])


def subtasks_label(task: SubtaskOrder) -> str:
    """Write a sequence of subtasks with commas."""
    return ",".join(task)


def plot_maze_run(run: FinishedRun, file: Path) -> None:
    """Paths of the conditioning episodes and of the last ones, and success per episode."""
    from clients.simulator.plot import plot_run  # matplotlib takes half a second to load, and most runs draw nothing

    maze: Any = run.env.unwrapped
    first = min(run.paths)  # of a session that is gone on with, earlier episodes were not seen here
    seen = {episode - first: path for episode, path in run.paths.items()}
    success = [result.success for result in run.results]
    plot_run(maze.layout, seen, success, maze.goal, file, conditioning=max(0, run.conditioning - first), goal_radius=maze.goal_radius)


def plot_kitchen_run(run: FinishedRun, file: Path) -> str | None:
    """The arm in the first episode and in the last, when each subtask was finished, and the score per episode.

    Where nothing can be drawn without a screen the picture has no arm, and the reason is returned.
    """
    from clients.simulator.timeline import plot_subtask_run, strip_of
    from clients.simulator.video import drawing_of

    try:
        draw = drawing_of(run.env)
    except ValueError as error:
        plot_subtask_run(run.results, run.subtasks, run.conditioning, file)
        return f"does not show the arm: {error}"
    shown = run.results[:1] if len(run.results) == 1 else (run.results[0], run.results[-1])
    plot_subtask_run(
        run.results, run.subtasks, run.conditioning, file, [strip_of(result, run.paths[result.index], draw) for result in shown]
    )
    return None


DOMAINS = {
    "maze": Domain(
        name="maze",
        env_id="clients.simulator:skillet/PointMaze-v0",
        task_format="ROW,COL of the goal cell, e.g. 12,7",
        task_argument="goal",
        task_from_text=cell_from_text,
        task_label=cell_label,
        plot=plot_maze_run,
    ),
    "kitchen": Domain(
        name="kitchen",
        env_id="clients.simulator:skillet/Kitchen-v0",
        task_format='four subtasks in their order, e.g. "microwave,kettle,light switch,hinge cabinet"',
        task_argument="subtasks",
        task_from_text=subtasks_from_text,
        task_label=subtasks_label,
        plot=plot_kitchen_run,
        subtasks=subtasks_from_text,
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
