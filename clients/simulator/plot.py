"""Pictures of a run in the maze: paths before and after adapting, and success over the episodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from clients.simulator.layout import WALL, Cell

Paths = Sequence[NDArray[np.floating]]
"""Paths, each [n, 2 or more]: x (row) and y (column) in m first."""

GROUND, STONE, INK = "#ffffff", "#424a5c", "#22262e"
BEFORE, AFTER, GOAL, START = "#8a919e", "#1f77b4", "#2ca05a", "#d9480f"
SHOWN_AFTER: Final = 10
"""How many of a run's last episodes count as 'after'."""


def plot_layout(ax: Axes, layout: Sequence[str]) -> None:
    """Draw the maze's walls as a picture seen from above: rows downwards, columns to the right, in m."""
    walls = np.array([[cell == WALL for cell in row] for row in layout])
    ax.imshow(walls, cmap=ListedColormap([GROUND, STONE]), vmin=0, vmax=1, interpolation="nearest", zorder=0)
    ax.set_xticks(range(0, len(layout[0]), 5))
    ax.set_yticks(range(0, len(layout), 5))
    ax.set(xlabel="y (column), m", ylabel="x (row), m", aspect="equal")
    ax.tick_params(length=0, labelsize=8, colors=INK)
    ax.spines[:].set_visible(False)


def plot_paths(
    layout: Sequence[str],
    before: Paths,
    after: Paths,
    goal: Cell,
    file: Path | str,
    *,
    goal_radius: float = 1.0,
    titles: tuple[str, str] = ("before", "after"),
) -> None:
    """Write a PNG with two pictures of the maze side by side: the paths before adapting and those after it."""
    figure = Figure(figsize=(11, 5.8), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for ax in (left, right):
        plot_layout(ax, layout)
    _draw_panel(left, before, goal, goal_radius, colour=BEFORE, title=titles[0])
    _draw_panel(right, after, goal, goal_radius, colour=AFTER, title=titles[1])
    figure.savefig(file, dpi=130)


def plot_run(
    layout: Sequence[str],
    paths: Mapping[int, NDArray[np.floating]],
    success: Sequence[bool],
    goal: Cell,
    file: Path | str,
    *,
    conditioning: int,
    goal_radius: float = 1.0,
) -> None:
    """Write a PNG of a whole run: paths of the conditioning episodes, paths of the last ones, and success per episode.

    Args:
        layout: rows of the maze.
        paths: episode number -> path [n, 2 or more].
        success: whether each episode reached the goal, from episode 0 on.
        goal: goal cell (row, column).
        file: where the picture goes.
        conditioning: number of conditioning episodes (K).
        goal_radius: distance that counts as reached, m.
    """
    first_after = max(conditioning, len(success) - SHOWN_AFTER)
    before = [path for episode, path in sorted(paths.items()) if episode < conditioning]
    after = [path for episode, path in sorted(paths.items()) if episode >= first_after]
    figure = Figure(figsize=(11, 7.4), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
    left, right, below = (figure.add_subplot(cell) for cell in (grid[0, 0], grid[0, 1], grid[1, :]))
    for ax in (left, right):
        plot_layout(ax, layout)
    explored, adapted = (
        f"exploring: {_count(success[:conditioning])}",
        f"last {len(success[first_after:])}: {_count(success[first_after:])}",
    )
    _draw_panel(left, before, goal, goal_radius, colour=BEFORE, title=explored)
    _draw_panel(right, after, goal, goal_radius, colour=AFTER, title=adapted)
    _draw_success(below, success, conditioning)
    figure.savefig(file, dpi=130)


def _draw_panel(ax: Axes, paths: Paths, goal: Cell, goal_radius: float, *, colour: str, title: str) -> None:
    ax.add_patch(Circle((goal[1], goal[0]), goal_radius, facecolor=GOAL, alpha=0.28, zorder=1))
    ax.add_patch(Circle((goal[1], goal[0]), goal_radius, fill=False, edgecolor=GOAL, linewidth=1.6, zorder=4))
    for path in paths:
        ax.plot(path[:, 1], path[:, 0], color=colour, linewidth=1.1, alpha=0.65, solid_capstyle="round", zorder=2)
        ax.plot(path[-1, 1], path[-1, 0], "o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.6, zorder=3)
    if len(paths):
        ax.plot(paths[0][0, 1], paths[0][0, 0], "o", color=START, markersize=7, markeredgecolor="white", zorder=5)
    ax.set_title(title, fontsize=11, color=INK)


def _draw_success(ax: Axes, success: Sequence[bool], conditioning: int) -> None:
    reached = np.asarray(success, dtype=float)
    episodes = np.arange(len(reached))
    ax.axvspan(-0.5, conditioning - 0.5, color=BEFORE, alpha=0.15, linewidth=0)
    ax.scatter(episodes, reached, s=16, c=[AFTER if hit else BEFORE for hit in success], zorder=3)
    # mean of up to the five episodes before and with each one
    smooth = [reached[max(0, i - 4) : i + 1].mean() for i in episodes]
    ax.plot(episodes, smooth, color=AFTER, linewidth=1.4, zorder=2, label="mean of the last 5")
    ax.set(xlabel="episode", ylabel="success", ylim=(-0.08, 1.08), xlim=(-0.5, max(len(reached), 1) - 0.5), yticks=(0, 0.5, 1))
    ax.legend(loc="center right", frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _count(success: Sequence[bool]) -> str:
    return f"{sum(success)} of {len(success)} reached the goal"
