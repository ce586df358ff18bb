"""The plot and the video that a run leaves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.progress import Progress

from clients.simulator.report import EpisodeResult
from clients.simulator.tasks import Domain, FinishedRun
from clients.simulator.video import Panel, check_encoder, drawing_of, write_video

Choice = Sequence[int | str]
"""Episodes by number, counted from 0, or as ``first`` and ``last``."""


def check_video(env: gym.Env[Any, Any]) -> None:
    """Raises ValueError, which says what to install, when no video of this environment can be made here."""
    check_encoder()
    try:
        drawing_of(env)
    except ValueError as error:
        raise ValueError(f"{error}; or leave out --video") from error


def check_episodes(choice: Choice, numbers: range) -> None:
    """Raises ValueError when a number that was chosen will not be run."""
    for number in choice:
        if isinstance(number, int) and number not in numbers:
            raise ValueError(f"expected --video-episodes among {numbers.start} to {numbers.stop - 1}, which are run; got {number}")


def choose(choice: Choice, results: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    """The chosen ones of a run's episodes, each once, in the order of the choice; those that were never finished are left out."""
    by_name: dict[int | str, EpisodeResult] = {result.index: result for result in results}
    by_name |= {"first": results[0], "last": results[-1]}
    found = [by_name[name] for name in choice if name in by_name]
    return list({result.index: result for result in found}.values())


def leave_pictures(run: FinishedRun, domain: Domain, console: Console, *, plot: Path | None, video: Path | None, choice: Choice) -> None:
    """Draw the plot and the video into these files, if any; the run has at least one episode."""
    if plot is not None and domain.plot is not None and (lacks := domain.plot(run, plot)) is not None:
        console.print(f"warning: {plot} {lacks}", style="yellow", highlight=False)
    if video is not None and (shown := choose(choice, run.results)):
        _draw_video(run, shown, video, console)
        console.print(f"{video}: episode {' and '.join(str(result.index) for result in shown)}", highlight=False)


def _draw_video(run: FinishedRun, shown: Sequence[EpisodeResult], file: Path, console: Console) -> None:
    panels = [Panel(result, run.paths[result.index]) for result in shown]
    if not console.is_terminal:
        console.print(f"drawing {file}", highlight=False)
    period_s = run.env.metadata["control_period_s"]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"drawing {file}", total=1.0)
        for share in write_video(file, drawing_of(run.env), panels, period_s=period_s, subtasks=run.subtasks):
            progress.update(bar, completed=share)
