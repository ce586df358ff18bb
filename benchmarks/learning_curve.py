"""Learning curves of many sessions: summary, table and picture, beside published curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from training.methods.published import Curve
from training.statistics import bootstrap_interval, task_means

LATER: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "maze": ((15, 20), (20, 30), (30, 40), (45, 50), (50, 60), (90, 100)),
    "kitchen": ((20, 30), (30, 40), (50, 60), (90, 100)),
}
"""Blocks of later episodes, counted from 1, both ends included."""


@dataclass(frozen=True)
class Curves:
    """What was measured: returns [runs, episodes], task of each run, and the phase that each episode acted in [runs, episodes].

    ``subtasks``: how many a task has; 0 where a task is all or nothing.
    """

    env: str
    conditioning: int
    subtasks: int
    returns: NDArray[np.float64]
    tasks: Sequence[str]
    phases: NDArray[np.str_]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], episodes: int, subtasks: int = 0) -> Self:
        """From the simulator client's JSON records, at least one, each of at least so many episodes."""
        kept = [record["episodes"][:episodes] for record in records]
        returns = np.array([[episode["return"] for episode in inside] for inside in kept], float)
        phases = np.array([[episode["phase"] for episode in inside] for inside in kept])
        first = records[0]
        return cls(first["env"], first["conditioning"], subtasks, returns, [record["task"] for record in records], phases)

    @property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """Name -> first and last episode, counted from 1, of those blocks that were run; later ones begin after conditioning."""
        named = {"conditioning": (1, self.conditioning), "five after conditioning": (self.conditioning + 1, self.conditioning + 5)}
        later = [(first, last) for first, last in LATER.get(self.env, ()) if first > self.conditioning]
        named |= {f"episodes {first}-{last}": (first, last) for first, last in later}
        return {name: ends for name, ends in named.items() if ends[0] <= ends[1] <= self.returns.shape[1]}

    @property
    def unit(self) -> str:
        """What the numbers are."""
        return f"ordered score, 0 to {self.subtasks}" if self.subtasks else "return"


def summarise(curves: Curves) -> dict[str, Any]:
    """Means and 95 % intervals of the blocks, means of the phases as the service named them, and of every episode."""
    rng = np.random.default_rng(0)
    blocks = {}
    for name, (first, last) in curves.blocks.items():
        values = task_means(curves.returns[:, first - 1 : last].mean(1), curves.tasks)
        low, high = bootstrap_interval(values, rng)
        blocks[name] = {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
    inside = {phase: curves.returns[curves.phases == phase] for phase in dict.fromkeys(curves.phases.T.flatten().tolist())}
    return {
        "runs": len(curves.returns),
        "episodes": int(curves.returns.shape[1]),
        "blocks": blocks,
        "phases": {phase: {"episodes": len(values), "mean": round(float(values.mean()), 4)} for phase, values in inside.items()},
        "first_reward": _first_reward(curves.returns),
        "per_episode": curves.returns.mean(0).round(4).tolist(),
    }


def _first_reward(returns: NDArray[np.float64]) -> dict[str, Any]:
    """Of returns [runs, episodes]: how many runs had a reward within so many episodes, and the mean return after a run's first one."""
    episodes = returns.shape[1]
    seen = np.maximum.accumulate(returns > 0, 1)  # [runs, episodes] a reward came in this episode or before
    after = returns[:, 1:][seen[:, :-1]]
    within = {count: int(seen[:, count - 1].sum()) for count in (5, 10, 20, episodes) if count <= episodes}
    return {"runs_within": within, "mean_after": round(float(after.mean()), 4) if len(after) else 0.0}


def table(curves: Curves, published: Mapping[str, Curve]) -> str:
    """Markdown: blocks and single episodes beside the published curves, phases, tasks."""
    summary, names = summarise(curves), list(published)
    lines = _head(f"{curves.unit}, {summary['runs']} runs", "mean", "95 % interval", *names)
    for name, (first, last) in curves.blocks.items():
        block = summary["blocks"][name]
        # Published episodes count from 0 where there is one before any learning.
        points = [[value for at, value in curve.items() if first - (first == 1) <= at <= last] for curve in published.values()]
        others = [f"{np.mean(point):.2f}" if point else "" for point in points]
        lines.append(_row(name, f"{block['mean']:.3f}", f"{block['low']:.3f} to {block['high']:.3f}", *others))
    lines += ["", *_head("episode", "Skillet, over HTTP", *names)]
    episodes = curves.returns.shape[1]
    for episode in sorted({at for curve in published.values() for at in curve if 0 < at <= episodes}):
        first, end = (0, curves.conditioning) if episode <= curves.conditioning else (curves.conditioning, episodes)
        around = curves.returns[:, max(first, episode - 3) : min(end, episode + 2)].mean()
        lines.append(_row(str(episode), f"{around:.2f}", *(f"{c[episode]:.2f}" if episode in c else "" for c in published.values())))
    lines += ["", *_head("phase", "episodes", "mean")]
    lines += [_row(phase, str(inside["episodes"]), f"{inside['mean']:.2f}") for phase, inside in summary["phases"].items()]
    first = summary["first_reward"]
    lines += ["", *_head("first reward", "runs")]
    lines += [_row(f"within {within} episodes", str(runs)) for within, runs in first["runs_within"].items()]
    lines += ["", f"Mean of all episodes after a run's first reward: {first['mean_after']:.2f}."]
    lines += ["", *_head("task", "conditioning", "five after", "last ten")]
    tasks, k = np.array(curves.tasks), curves.conditioning
    for task in dict.fromkeys(curves.tasks):
        mine = curves.returns[tasks == task]
        lines.append(_row(task, *(f"{part.mean():.2f}" if part.size else "" for part in (mine[:, :k], mine[:, k : k + 5], mine[:, -10:]))))
    return "\n".join(lines) + "\n"


def plot(curves: Curves, published: Mapping[str, Curve], file: Path) -> None:
    """The learning curve, its interval over tasks, and the published points; five episodes averaged, not across the conditioning's end."""
    rng, (runs, episodes) = np.random.default_rng(0), curves.returns.shape
    k = min(curves.conditioning, episodes)
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    ax.axvspan(0.5, k + 0.5, color="0.94", lw=0)
    label: str | None = f"Skillet over HTTP ({runs} runs, mean and 95 % interval)"
    returns = task_means(curves.returns, curves.tasks)
    for begin, part in ((0, returns[:, :k]), (k, returns[:, k:])):
        if not part.size:
            continue
        smooth = np.array([[row[max(0, i - 2) : i + 3].mean() for i in range(len(row))] for row in part])
        band = np.array([bootstrap_interval(column, rng) for column in smooth.T])
        at = begin + 1 + np.arange(part.shape[1])
        ax.fill_between(at, band[:, 0], band[:, 1], color="#0072b2", alpha=0.2, lw=0)
        ax.plot(at, smooth.mean(0), color="#0072b2", lw=2, label=label)
        label = None
    for (name, curve), style, colour in zip(published.items(), ("o--", "s:", "^:"), ("#d55e00", "#009e73", "#cc79a7"), strict=False):
        points = [(at, value) for at, value in sorted(curve.items()) if at <= episodes]
        ax.plot(*zip(*points, strict=True), style, color=colour, ms=4, lw=1, label=name)
    tasks = len(set(curves.tasks))
    ax.set(xlabel="episode", ylabel=f"{curves.unit}, stochastic policy", title=f"{curves.env}: {tasks} unseen tasks")
    ax.set(xlim=(0.5, episodes + 0.5), ylim=(0, curves.subtasks or None))
    ax.annotate("conditioning", ((k + 1) / 2, 0), (0, 5), ("data", "axes fraction"), "offset points", ha="center", color="0.45", fontsize=9)
    ax.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|---" * len(cells) + "|"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
