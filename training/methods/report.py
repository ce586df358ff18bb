"""What a comparison found, from the results of its units: the JSON, and tables in Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from training.methods.catalogue import SKILLET
from training.methods.method import Method
from training.methods.published import Curve
from training.statistics import bootstrap_interval, task_means

ROWS: Final = (0, 20, 25, 40, 60, 100, 200, 300)
WINDOW: Final = 5
"""Episodes over which a row of the table, and the figure, average."""
AREA_EPISODES: Final = 50
BLOCKS: Final = ((1, 10), (11, 15), (21, 25), (31, 40), (41, 60), (91, 110))
"""First and last episodes, from 1, over which a second table averages: those after ten or twenty conditioning episodes, and later ones."""
NEAR: Final = 0.9
FULL_RETURN: Final = {"maze": 1.0, "kitchen": 4.0}
"""The return of a task that is solved, by domain."""


@dataclass(frozen=True)
class MethodResults:
    """Stochastic returns [tasks, episodes] of a method, each the mean of the task's runs with its seeds."""

    method: Method
    returns: NDArray[np.float64]
    deterministic: Mapping[int, NDArray[np.float64]]
    """By the episodes before: the return of one episode with the mean skill, [tasks]."""
    conditioning: int
    runs: int
    """Tasks with their meta-training seeds and session seeds."""
    meta_seeds: int
    seeds: int
    costs: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, method: Method, units: Sequence[Mapping[str, Any]]) -> Self:
        """From the results of units, at least one; cut to the episodes that all of them have.

        Each meta-training seed counts as much as another, however many sessions began from it.
        """
        sessions = [session for unit in units for session in unit["sessions"]]
        seeds = [(*session["task"], unit["meta_seed"]) for unit in units for session in unit["sessions"]]
        tasks = [seed[:-1] for seed in dict.fromkeys(seeds)]

        def by_task(values: list[Any]) -> NDArray[np.float64]:
            return task_means(task_means(np.array(values, float), seeds), tasks)

        episodes = min(len(session["returns"]) for session in sessions)
        shared = set.intersection(*(set(session["deterministic_returns"]) for session in sessions))
        return cls(
            method,
            by_task([session["returns"][:episodes] for session in sessions]),
            {int(at): by_task([session["deterministic_returns"][at] for session in sessions]) for at in sorted(shared, key=int)},
            units[0]["conditioning"],
            len(sessions),
            len({unit["meta_seed"] for unit in units}),
            len({unit["seed"] for unit in units}),
            [unit["cost"] for unit in units],
        )

    @property
    def episodes(self) -> int:
        """How many every run has."""
        return self.returns.shape[1]

    def after(self, episode: int) -> NDArray[np.float64] | None:
        """Mean return [tasks] of the five episodes after the ``episode``-th; at a run's end of its last five; None beyond it."""
        if episode > self.episodes:
            return None
        begin = max(0, min(episode, self.episodes - WINDOW))
        return self.returns[:, begin : begin + WINDOW].mean(1)

    def area(self) -> NDArray[np.float64] | None:
        """Mean return [tasks] of episodes 1 to 50; None where there are fewer."""
        return self.returns[:, :AREA_EPISODES].mean(1) if self.episodes >= AREA_EPISODES else None

    def block(self, first: int, last: int) -> NDArray[np.float64] | None:
        """Mean return [tasks] of the episodes ``first`` to ``last``, from 1; None where there are fewer."""
        return self.returns[:, first - 1 : last].mean(1) if self.episodes >= last else None

    def episodes_to(self, level: float) -> int | None:
        """The first episode, from 1, that begins five whose mean over all runs is at least ``level``."""
        mean = self.returns.mean(0)
        if len(mean) < WINDOW:
            return None
        smooth = np.convolve(mean, np.ones(WINDOW) / WINDOW, "valid")
        reached = np.flatnonzero(smooth >= level - 1e-9)
        return int(reached[0]) + 1 if len(reached) else None

    def less_than(self, other: "MethodResults") -> NDArray[np.float64]:
        """How much less its mean return [tasks] is than another method's on the same tasks, over the episodes that both have."""
        shared = min(self.episodes, other.episodes)
        return other.returns[:, :shared].mean(1) - self.returns[:, :shared].mean(1)


def summarise(results: Sequence[MethodResults], level: float) -> dict[str, Any]:
    """Everything that the tables say, as JSON."""
    own = next((found for found in results if found.method == SKILLET), None)
    return {
        found.method.name: {
            "label": found.method.label,
            "what_it_is": found.method.about,
            "runs": found.runs,
            "meta_seeds": found.meta_seeds,
            "seeds": found.seeds,
            "episodes": found.episodes,
            "conditioning": found.conditioning,
            "after": {str(row): _interval(values) for row in ROWS if (values := found.after(row)) is not None},
            "blocks": {f"{a} to {b}": _interval(values) for a, b in BLOCKS if (values := found.block(a, b)) is not None},
            "deterministic": {str(at): _interval(values) for at, values in found.deterministic.items()},
            "area": None if (area := found.area()) is None else _interval(area),
            "episodes_to_near": found.episodes_to(level),
            "less_than_skillet": None if own is None or own is found else _interval(found.less_than(own)),
            "per_episode": found.returns.mean(0).round(4).tolist(),
            "costs": list(found.costs),
        }
        for found in results
    }


def tables(summary: Mapping[str, Any], published: Mapping[str, Curve], level: float) -> str:
    """Markdown: returns by episode beside the published ones, single figures, the deterministic protocol, cost, what each is."""
    methods = list(summary.values())
    names = [method["label"] for method in methods]
    rows = [row for row in ROWS if any(str(row) in method["after"] for method in methods)]
    lines = _head("after episode", *names, *published)
    for row in rows:
        lines.append(_row(str(row), *(_cell(m["after"].get(str(row))) for m in methods), *(_point(c, row) for c in published.values())))
    if blocks := dict.fromkeys(block for m in methods for block in m["blocks"]):
        lines += ["", *_head("episodes", *names)]
        lines += [_row(block, *(_cell(m["blocks"].get(block)) for m in methods)) for block in blocks]
    lines += ["", *_head("", *names)]
    lines.append(_row(f"area, episodes 1-{AREA_EPISODES}", *(_cell(m["area"]) for m in methods)))
    lines.append(
        _row(f"episodes to {level:g}", *("never" if m["episodes_to_near"] is None else str(m["episodes_to_near"]) for m in methods))
    )
    if any(m["less_than_skillet"] for m in methods):
        lines.append(_row("less than Skillet, task by task, all shared episodes", *(_cell(m["less_than_skillet"]) for m in methods)))
    lines.append(_row("runs (meta seeds, seeds)", *(f"{m['runs']} ({m['meta_seeds']}, {m['seeds']})" for m in methods)))
    lines.append(_row("episodes", *(str(m["episodes"]) for m in methods)))
    if measured := sorted({int(at) for m in methods for at in m["deterministic"]}):
        lines += ["", *_head("mean skill, after episode", *names)]
        lines += [_row(str(at), *(_cell(m["deterministic"].get(str(at))) for m in methods)) for at in measured]
    stages = ["meta-training", "target tasks"]
    columns = [f"{stage}: {what}" for stage in stages for what in ("environment steps", "gradient steps", "CPU minutes")]
    lines += ["", *_head("cost", *columns)]
    lines += [_row(m["label"], *_costs(m["costs"])) for m in methods]
    lines += ["", *_head("method", "what it is")]
    lines += [_row(m["label"], m["what_it_is"]) for m in methods]
    return "\n".join(lines) + "\n"


def _costs(costs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of one unit, on average: all tasks, one seed."""
    cells = []
    for stage in ("meta", "target"):
        known = [cost[stage] for cost in costs if cost[stage] is not None]
        for key, per in (("environment_steps", 1), ("updates", 1), ("cpu_s", 60)):
            cells.append(f"{np.mean([cost[key] for cost in known]) / per:,.0f}" if known else "not known")
    return cells


def _interval(values: NDArray[np.float64]) -> dict[str, float]:
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def _cell(interval: Mapping[str, float] | None) -> str:
    return "" if interval is None else f"{interval['mean']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"


def _point(curve: Curve, row: int) -> str:
    """The published value nearest to the middle of the row's five episodes, where there is one within five."""
    at = min(curve, key=lambda episode: abs(episode - (row + 2)))
    return f"{curve[at]:.2f}" if abs(at - (row + 2)) <= WINDOW else ""


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|---" * len(cells) + "|"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
