"""Plots of the stages: skills on the maze, success over training, task embeddings, the learning curve on unseen tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from training.contract.context import Floats
from training.statistics import bootstrap_interval

Picture = NDArray[np.uint8]
"""RGB [height, width, 3], row 0 at the top."""
SMOOTHING = 10
"""Epochs over which training curves are averaged."""


def draw_maze(ax: Axes, layout: Sequence[str]) -> None:
    """Draw a maze's walls (``#``) from above: row x downwards, column y to the right. Plot paths over it as ``ax.plot(y, x)``."""
    walls = np.array([[cell == "#" for cell in row] for row in layout])
    ax.imshow(walls, cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest", zorder=0)
    ax.set(xticks=[], yticks=[], aspect="equal")


def plot_maze_skills(layout: Sequence[str], paths: Sequence[Floats], file: Path, shown: int = 24) -> None:
    """Paths [n, S] of skills sampled from the prior, each its own colour, on the maze."""
    figure, ax = plt.subplots(figsize=(6, 6.4), layout="constrained")
    draw_maze(ax, layout)
    for index, path in enumerate(paths[:shown]):
        ax.plot(path[:, 1], path[:, 0], lw=0.9, alpha=0.75, color=plt.get_cmap("turbo")(index / max(1, shown - 1)))
    ax.plot(paths[0][0, 1], paths[0][0, 0], "o", color="black", ms=7)
    ax.set_title(f"{min(shown, len(paths))} episodes of skills from the skill prior")
    _write(figure, file)


def plot_chance_subtasks(subtasks: Sequence[str], done: NDArray[np.bool_], file: Path) -> None:
    """Which subtasks [episodes, subtasks] episodes of skills sampled from the prior finish, and how many of them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    left.barh(subtasks, done.mean(0))
    left.set(xlim=(0, 1), xlabel="share of episodes that finish it", title=f"{len(done)} episodes of skills from the skill prior")
    left.invert_yaxis()
    counts = np.bincount(done.sum(1), minlength=len(subtasks) + 1)
    right.bar(np.arange(len(counts)), counts / len(done))
    right.set(xlabel="distinct subtasks finished in an episode", ylabel="share of episodes", title=f"mean {done.sum(1).mean():.2f}")
    _write(figure, file)


def plot_skill_strip(frames: Sequence[Sequence[Picture]], captions: Sequence[str], file: Path, columns: Sequence[str] = ()) -> None:
    """Pictures of skills, one row for each.

    Args:
        frames: for each skill its pictures in order, RGB [height, width, 3] uint8, all of one size; rows may differ in length.
        captions: what stands left of each row.
        file: where the PNG goes.
        columns: what stands above each column, e.g. the step; as many as the longest row has pictures, or none.

    Raises:
        ValueError: no pictures, or not as many captions as rows.
    """
    if not frames or not all(len(row) for row in frames) or len(captions) != len(frames):
        raise ValueError(f"expected pictures for each row and as many captions, got {[len(row) for row in frames]} and {len(captions)}")
    height, width = np.shape(frames[0][0])[:2]
    count, side = max(map(len, frames)), 1.5
    size = (side * count + 1.3, (side * height / width + 0.04) * len(frames) + 0.3)
    figure, axes = plt.subplots(len(frames), count, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, row, caption in zip(axes, frames, captions, strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, picture in zip(line, row, strict=False):
            ax.imshow(picture)
        line[0].annotate(caption, (0, 0.5), (-6, 0), "axes fraction", "offset points", ha="right", va="center", fontsize=9)
    for ax, name in zip(axes[0], columns, strict=False):
        ax.set_title(name, fontsize=9)
    _write(figure, file)


def plot_meta_training(log: Path, file: Path) -> None:
    """Success of training tasks, KL to the skill prior and critic loss over updates, from the stage's JSONL log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    at = np.array([line["at"] for line in lines])
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels = (
        ("return on the training tasks", {"prior_return": "e from the task prior", "posterior_return": "e from the posterior"}),
        ("KL(meta-policy || skill prior), nats", {"kl_prior": "task prior", "kl_posterior": "posterior"}),
        ("critic loss", {"critic_loss": "critics"}),
    )
    for ax, (title, series) in zip(axes, panels, strict=True):
        for key, label in series.items():
            ax.plot(at, _smooth(np.array([line[key] for line in lines])), label=label)
        ax.set(title=title, xlabel="gradient steps")
        ax.legend(frameon=False)
        ax.grid(alpha=0.3)
    axes[2].set_yscale("log")
    _write(figure, file)


def plot_task_embeddings(embeddings: NDArray[np.float32], labels: Mapping[str, Sequence[float] | Sequence[str]], file: Path) -> None:
    """Posterior means [T, E] of the training tasks by their two principal axes, once for each kind of label, coloured by it."""
    centred = embeddings - embeddings.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    figure, axes = plt.subplots(1, len(labels), figsize=(4.8 * len(labels), 4.4), layout="constrained", squeeze=False)
    for ax, (name, values) in zip(axes[0], labels.items(), strict=True):
        if isinstance(values[0], str):
            for place, value in enumerate(sorted({str(value) for value in values})):
                chosen = [i for i, other in enumerate(values) if other == value]
                ax.scatter(plane[chosen, 0], plane[chosen, 1], color=f"C{place}", marker="osD^vPX"[place % 7], s=50, label=value)
            ax.legend(frameon=False, fontsize="small")
        else:
            points = ax.scatter(plane[:, 0], plane[:, 1], c=values, cmap="viridis", s=50)
            figure.colorbar(points, ax=ax, label=name)
        ax.set(xlabel="first principal axis", ylabel="second principal axis", title=f"task embeddings by the {name}")
    _write(figure, file)


def plot_learning_curve(returns: NDArray[np.float64], conditioning: int, file: Path) -> None:
    """Mean return [sessions, episodes] with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    mean = returns.mean(0)
    band = np.array([bootstrap_interval(column, rng) for column in returns.T])
    figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    episodes = np.arange(1, len(mean) + 1)
    ax.fill_between(episodes, band[:, 0], band[:, 1], alpha=0.2, lw=0)
    ax.plot(episodes, mean, lw=1.6)
    ax.axvline(conditioning + 0.5, color="grey", ls=":", label=f"{conditioning} conditioning episodes end")
    ax.set(xlabel="episode", ylabel="return", ylim=(0, 1.03 * max(1.0, returns.max())))
    ax.set_title(f"unseen tasks, {len(returns)} sessions, mean and 95 % interval")
    ax.legend(frameon=False, loc="lower right")
    ax.grid(alpha=0.3)
    _write(figure, file)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    width = min(SMOOTHING, len(values))
    padded = np.concatenate([np.full(width - 1, values[0]), values])
    return np.convolve(padded, np.ones(width) / width, "valid")


def _write(figure: plt.Figure, file: Path) -> None:
    figure.savefig(file, dpi=130)
    plt.close(figure)
