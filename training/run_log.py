"""What a stage shows and keeps while it runs: a progress bar with its newest metrics, and one JSON line per report.

A line has wall time and the process's CPU time since the stage began, interruptions left out.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.contract.errors import TrainingDiverged


class RunLog:
    """Progress bar on a terminal, plain lines elsewhere; metrics appended to ``<run>/<stage>.jsonl``."""

    def __init__(self, run_dir: Path, stage: str, total: int, unit: str = "steps", *, resumed_at: int = 0) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / f"{stage}.jsonl"
        self._stage, self._unit, self._at = stage, unit, resumed_at
        before = _forget_after(self.path, resumed_at)
        self._began = time.monotonic() - before.get("elapsed_s", 0.0)
        self._cpu_began = time.process_time() - before.get("cpu_s", 0.0)
        self._total, self._printed = total, 0.0
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(f"[bold]{stage}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(stage, total=total, text="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()

    @property
    def cpu_s(self) -> float:
        """CPU time of this process since the stage began, interruptions left out."""
        return time.process_time() - self._cpu_began

    def advance(self, at: int) -> None:
        """Move the bar to ``at``."""
        self._at = at
        self._progress.update(self._task, completed=at)

    def report(self, at: int, metrics: Mapping[str, float]) -> None:
        """Show metrics and append them to the log. Raises TrainingDiverged where one is not finite; checkpoints come after reports."""
        self.advance(at)
        elapsed_s, cpu_s = time.monotonic() - self._began, self.cpu_s
        times = {"elapsed_s": round(elapsed_s, 3), "cpu_s": round(cpu_s, 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": at, **times, **{k: round(float(v), 6) for k, v in metrics.items()}}) + "\n")
        text = " ".join(f"{key} {value:.3g}" for key, value in metrics.items())
        self._progress.update(self._task, text=text)
        if self._progress.disable and (elapsed_s - self._printed > 10 or at >= self._total):
            self._printed = elapsed_s
            self._console.print(
                f"{self._stage}: {at}/{self._total} {self._unit}, {elapsed_s:.0f} s, {text}", highlight=False, soft_wrap=True
            )
        if lost := [f"{name} is {float(value)}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise TrainingDiverged(
                f"{self._stage}: training has diverged, expected finite numbers after {at} {self._unit}, and {', '.join(lost)}. Its "
                f"last checkpoint, if there was one, is from before, and {self.path} shows where it began; train anew in another folder, "
                "with a lower learning rate or what else was changed taken back"
            )


def _forget_after(path: Path, at: int) -> dict[str, float]:
    """Drop what an interrupted run had logged beyond its checkpoint. Returns the last line that is left, or nothing."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # the last may have been cut short
    kept = [line for line in lines if line["at"] <= at] if at else []
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept[-1] if kept else {}
