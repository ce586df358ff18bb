"""What a run tells: a live display, a table at the end, a JSON file."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from clients.sdk import FinetuningStatus, SessionInfo
from clients.simulator.whole_file import replacing


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One episode: its number, the phase it acted in, the summed reward, the version in use at its end, wall seconds.

    ``completed``: the subtasks that were finished, in order, and the step, counted from 1, that finished each; None where a task has none.
    """

    index: int
    phase: str
    total_reward: float
    success: bool
    steps: int
    policy_version: int  # the newest that chose a skill; what explores beyond what a session knows is 0
    seconds: float
    completed: Mapping[str, int] | None = None

    @property
    def outcome(self) -> str:
        """How it ended, in a few words."""
        if self.completed is None:
            return "reached" if self.success else "missed"
        return ", ".join(f"{name} {step}" for name, step in self.completed.items()) or "nothing"

    def to_json(self) -> dict[str, Any]:
        """The episode as it stands in the JSON file."""
        record = {
            "index": self.index,
            "phase": self.phase,
            "return": self.total_reward,
            "success": self.success,
            "steps": self.steps,
            "policy_version": self.policy_version,
            "seconds": round(self.seconds, 4),
        }
        return record if self.completed is None else record | {"completed": dict(self.completed)}


@dataclass
class StepTimes:
    """Where the wall time of the control loops went: ``simulator_s`` and ``service_s`` within the steps, ``learner_wait_s`` between."""

    steps: int = 0
    simulator_s: float = 0.0
    service_s: float = 0.0
    learner_wait_s: float = 0.0


class Watcher(Protocol):
    """Is told how a run goes."""

    def episode_started(self, episode: int, phase: str) -> None:
        """An episode begins."""
        ...

    def stepped(self, steps: int, total_reward: float, policy_version: int, completed: Mapping[str, int] | None) -> None:
        """Some steps of the episode are done, and some subtasks, where a task has them."""
        ...

    def waiting(self) -> None:
        """The next episode waits for the learner."""
        ...

    def waited(self, status: FinetuningStatus, *, caught_up: bool) -> None:
        """The learner has caught up, or is not waited for any longer."""
        ...


class Display:
    """A live line on a terminal; on anything else one plain line per episode. ``subtasks``: of how many a task consists, if of any."""

    def __init__(self, console: Console, episodes: int, subtasks: int = 0) -> None:
        self._console, self._episodes, self._subtasks = console, episodes, subtasks
        self._results: list[EpisodeResult] = []
        self._episode, self._phase, self._doing = 0, "", "starting"
        self._began = time.perf_counter()
        self._learner_told = False
        self._progress = Progress(
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=5,
            disable=not console.is_terminal,
        )
        self._line = self._progress.add_task("starting", total=episodes)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def episode_started(self, episode: int, phase: str) -> None:
        """Show the new episode."""
        self._episode, self._phase, self._began = episode, phase, time.perf_counter()

    def stepped(self, steps: int, total_reward: float, policy_version: int, completed: Mapping[str, int] | None = None) -> None:
        """Show the running episode."""
        rate = steps / (time.perf_counter() - self._began)
        finished = f" ({', '.join(completed)})" if completed else ""
        self._show(f"{self._earned(total_reward)}{finished}  policy v{policy_version}  {rate:.0f} steps/s")

    def waiting(self) -> None:
        """Show that the learner is waited for."""
        self._show("the learner catches up")

    def waited(self, status: FinetuningStatus, *, caught_up: bool) -> None:
        """Warn, once, of a learner that failed or fell behind."""
        if self._learner_told or (caught_up and status.state != "failed"):
            return
        self._learner_told = True
        if status.state == "failed":
            warning = f"fine-tuning failed: {status.error}"
        else:
            seen = f"{status.episodes_learned} of {status.episodes_completed}"
            warning = f"the learner has seen {seen} episodes; not waiting longer (--max-wait-s)"
        self._console.print(f"warning: {warning}", style="yellow", highlight=False)

    def episode_finished(self, result: EpisodeResult) -> None:
        """Count the episode; on a terminal advance the bar, else print a line."""
        self._results.append(result)
        self._progress.advance(self._line)
        if not self._console.is_terminal:
            self._console.print(
                f"episode {result.index:3d}  {result.phase:10s}  {self._told(result)}  {result.steps} steps  "
                f"{result.steps / result.seconds:.0f} steps/s  policy v{result.policy_version}",
                highlight=False,
            )

    def _show(self, text: str) -> None:
        self._progress.update(self._line, description=f"episode {self._episode}  {self._phase}{self._so_far()}  {text}")

    def _so_far(self) -> str:
        if not self._results:
            return ""
        if not self._subtasks:
            return f"  success {mean([r.success for r in self._results]):.2f}"
        return f"  mean score {mean([r.total_reward for r in self._results]):.2f}"

    def _told(self, result: EpisodeResult) -> str:
        if not self._subtasks:
            return f"{result.outcome:7s}  {self._earned(result.total_reward)}"
        return f"{self._earned(result.total_reward)}: {result.outcome}{self._so_far()}"

    def _earned(self, total_reward: float) -> str:
        return f"score {total_reward:g} of {self._subtasks}" if self._subtasks else f"return {total_reward:g}"


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers, at least one."""
    return sum(values) / len(values)


def blocks(results: Sequence[EpisodeResult], conditioning: int) -> list[tuple[str, list[EpisodeResult]]]:
    """Episodes in the blocks of the table: conditioning, the five after it, then tens. Empty blocks are left out."""
    edges = [(0, conditioning, "conditioning"), (conditioning, conditioning + 5, "next five")]
    last = max((r.index for r in results), default=-1)
    edges += [(first, first + 10, "") for first in range(conditioning + 5, last + 1, 10)]
    named = []
    for first, end, name in edges:
        inside = [r for r in results if first <= r.index < end]
        if inside:
            span = f"{inside[0].index}-{inside[-1].index}"
            named.append((f"{name} ({span})" if name else span, inside))
    return named


def summary_table(results: Sequence[EpisodeResult], conditioning: int, subtasks: Sequence[str] = ()) -> Table:
    """Mean success and return per block of episodes, or mean score and the share of episodes that finished each subtask; steps, seconds."""
    ranks = {str(rank): name for rank, name in enumerate(subtasks, 1)}
    scores = ("score", *ranks) if subtasks else ("success", "return")
    # Fits a terminal of 80 columns.
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False, "title": "What happened"}
    legend = ", ".join(f"{rank} {name}" for rank, name in ranks.items())
    table = Table(*("episodes", "phase", *scores, "steps", "time s", "policy"), **look, caption=legend and f"finished: {legend}")
    for column in table.columns[1:]:
        column.no_wrap = True
    for name, inside in blocks(results, conditioning):
        phases = " ".join(dict.fromkeys(r.phase for r in inside))
        table.add_row(
            name,
            phases,
            *(f"{value:.2f}" for value in _block_scores(inside, subtasks)),
            f"{mean([r.steps for r in inside]):.0f}",
            f"{mean([r.seconds for r in inside]):.2f}",
            f"v{inside[-1].policy_version}",
        )
    return table


def _block_scores(inside: Sequence[EpisodeResult], subtasks: Sequence[str]) -> list[float]:
    earned = mean([result.total_reward for result in inside])
    if not subtasks:
        return [mean([result.success for result in inside]), earned]
    return [earned, *(mean([name in (result.completed or ()) for result in inside]) for name in subtasks)]


def times_line(times: StepTimes) -> str:
    """Steps per second and what one step is made of, in one line."""
    in_loop_s = times.simulator_s + times.service_s
    if not times.steps or not in_loop_s:
        return "no complete episode"
    simulator_ms, service_ms = 1e3 * times.simulator_s / times.steps, 1e3 * times.service_s / times.steps
    return (
        f"{times.steps} steps, {times.steps / in_loop_s:.0f} per second: {service_ms:.2f} ms for the service's answer, "
        f"{simulator_ms:.2f} ms for the simulator; waited {times.learner_wait_s:.1f} s for the learner"
    )


def write_json(path: Path, *, env: str, task: str, about: SessionInfo, results: Sequence[EpisodeResult]) -> None:
    """Write the run's record as a whole: what was run with which bundle, and every episode."""
    _write(path, {"env": env, "task": task, **_run_record(about, results)})


def write_fleet_json(path: Path, *, env: str, task: str, runs: Sequence[tuple[SessionInfo, Sequence[EpisodeResult]]]) -> None:
    """As `write_json`, of several robots: ``runs`` holds of each what is there of one."""
    _write(path, {"env": env, "task": task, "runs": [_run_record(about, results) for about, results in runs]})


def _run_record(about: SessionInfo, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    return {
        "seed": about.seed,
        "conditioning": about.conditioning_episodes,
        "bundle": about.bundle.digest,
        "episodes": [result.to_json() for result in results],
    }


def _write(path: Path, record: Mapping[str, Any]) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
