"""The picture of a run in the kitchen: the arm before and after adapting, when each subtask was finished, the score of each episode."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from clients.simulator.report import EpisodeResult
from clients.simulator.video import Draw, Picture

PICTURES: Final = 5
"""Pictures of the arm in a strip."""
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
"""One for each rank in the task, told apart also by those who see no red or no green (Okabe and Ito)."""
CAPTION_WIDTH: Final = 30
"""Characters in a line of a picture's caption."""
MARKERS: Final = "os^D"
LABEL_WIDTH: Final = 0.08
"""Room for the name of a phase, as a share of the axis."""
INK, GREY, PALE, BAND = "#22262e", "#5f6672", "#d5d9e0", "#f1f3f6"


def plot_subtask_run(
    results: Sequence[EpisodeResult],
    subtasks: Sequence[str],
    conditioning: int,
    file: Path,
    strips: Sequence[tuple[EpisodeResult, Sequence[tuple[int, Picture]]]] = (),
) -> None:
    """Write a PNG of a run.

    Args:
        results: its episodes, at least one.
        subtasks: the task's subtasks, in the order in which they pay.
        conditioning: number of conditioning episodes (K), counted from episode 0.
        file: where it goes.
        strips: episodes and pictures of them, each with the number of steps before it; one row of pictures for each episode.
    """
    figure = Figure(figsize=(11, 4.6 + 2.55 * len(strips)), layout="constrained", facecolor="white")
    parts = figure.subfigures(1 + len(strips), 1, height_ratios=[*[2.55] * len(strips), 4.6], squeeze=False)[:, 0]
    for part, (result, pictures) in zip(parts, strips, strict=False):
        _draw_strip(part, result, pictures, len(subtasks))
    above, below = parts[-1].subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    for ax in (above, below):
        _mark_phases(ax, results, conditioning, named=ax is above)
    _draw_timeline(above, results, subtasks)
    _draw_scores(below, results, len(subtasks))
    figure.savefig(file, dpi=130)


def strip_of(result: EpisodeResult, path: NDArray[np.floating], draw: Draw) -> tuple[EpisodeResult, list[tuple[int, Picture]]]:
    """An episode and pictures of its observations ``path`` [T + 1, S] at the moments that tell most."""
    return result, [(step, draw(path[step])) for step in moments(result, PICTURES)]


def moments(result: EpisodeResult, count: int) -> list[int]:
    """Up to ``count`` steps of an episode, in order: those that finished a subtask, its last, and others where the gaps are widest."""
    chosen = sorted({*(result.completed or {}).values(), result.steps})[-count:]
    while len(chosen) < count:
        begin, end = max(itertools.pairwise([0, *chosen]), key=lambda gap: gap[1] - gap[0])
        if end - begin < 2:
            break
        chosen = sorted([*chosen, (begin + end) // 2])
    return chosen


def _draw_strip(part: SubFigure, result: EpisodeResult, pictures: Sequence[tuple[int, Picture]], subtasks: int) -> None:
    title = f"episode {result.index}, {result.phase}: score {result.total_reward:g} of {subtasks}"
    part.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, weight="bold")
    axes: list[Axes] = list(part.subplots(1, PICTURES))
    for ax in axes:
        ax.set_axis_off()
    for ax, (step, picture) in zip(axes, pictures, strict=False):
        ax.imshow(picture)
        finished = [name for name, at in (result.completed or {}).items() if at == step]
        ax.set_title(
            textwrap.fill(f"step {step}: {', '.join(finished)}", CAPTION_WIDTH) if finished else f"step {step}",
            fontsize=9, color=COLOURS[0] if finished else GREY, weight="bold" if finished else "normal",
        )  # fmt: skip


def _mark_phases(ax: Axes, results: Sequence[EpisodeResult], conditioning: int, *, named: bool) -> None:
    """Bands for the phases that the service told, and a line where conditioning ends."""
    begin, room = results[0].index, float(results[0].index) - 0.5
    for number, (phase, inside) in enumerate(itertools.groupby(results, key=lambda result: result.phase)):
        end = begin + len(list(inside))
        if number % 2 == 0:
            ax.axvspan(begin - 0.5, end - 0.5, color=BAND, linewidth=0, zorder=0)
        middle, half = (begin + end - 1) / 2, LABEL_WIDTH * len(results) / 2
        if named and (middle - half >= room or number == 0):  # of phases too short for their names some stay without
            ax.annotate(phase, (middle, 1), (0, 3), ("data", "axes fraction"), "offset points", ha="center", color=GREY, fontsize=9)
            room = middle + half
        begin = end
    if results[0].index < conditioning <= results[-1].index:
        ax.axvline(conditioning - 0.5, color=INK, linestyle=":", linewidth=1.2, zorder=1)
        if named:
            at = (conditioning - 0.5, 1.0)
            ax.annotate(f"K = {conditioning}", at, (4, -4), ("data", "axes fraction"), "offset points", va="top", color=INK, fontsize=9)


def _draw_timeline(ax: Axes, results: Sequence[EpisodeResult], subtasks: Sequence[str]) -> None:
    """For each episode how long it was and the step that finished each subtask; marks beside each other where one step finished several."""
    ax.vlines([r.index for r in results], 0, [r.steps for r in results], color=PALE, linewidth=max(1.0, min(4.0, 120 / len(results))))
    for rank, (name, colour, marker) in enumerate(zip(subtasks, COLOURS, MARKERS, strict=True)):
        aside = 0.17 * min(1.0, len(results) / 40) * (rank - 1.5)
        at = [(r.index + aside, r.completed[name]) for r in results if r.completed and name in r.completed]
        x, y = np.array(at, float).reshape(-1, 2).T
        size = float(np.clip(1600 / len(results), 12, 40))
        ax.scatter(x, y, s=size, color=colour, marker=marker, linewidth=0, zorder=3, label=f"{rank + 1} {name}")
    ax.set(ylabel="finished at step", ylim=(0, 1.1 * max(r.steps for r in results)))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=len(subtasks), frameon=False, fontsize=9, handletextpad=0.2)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_scores(ax: Axes, results: Sequence[EpisodeResult], subtasks: int) -> None:
    """The score of each episode and the mean of up to five episodes, the one and those before it."""
    at, scores = [r.index for r in results], np.array([r.total_reward for r in results])
    ax.scatter(at, scores, s=14, color=GREY, linewidth=0, zorder=3)
    smooth = [scores[max(0, i - 4) : i + 1].mean() for i in range(len(scores))]
    ax.plot(at, smooth, color=COLOURS[0], linewidth=1.6, zorder=2, label="mean of the last 5")
    ax.set(xlabel="episode", ylabel="score", ylim=(-0.2, subtasks + 0.2), yticks=range(subtasks + 1), xlim=(at[0] - 0.5, at[-1] + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.96), frameon=False, fontsize=8)
    ax.grid(axis="y", color=PALE, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
