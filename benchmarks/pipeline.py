"""How long the whole pipeline takes from nothing: ``python -m benchmarks.pipeline --config maze [--run DIR] [--json OUT]``.

Runs every stage as a user would, each in a process of its own, with its data, checkpoints and bundle in one new folder, and reports each
stage's wall time (start of Python to exit) and, of the stages that train, gradient steps per second by the stage's own log.
``--set``, ``--device`` and ``--threads`` are handed on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

STAGES = ("collect", "skills", "meta", "belief", "evaluate", "export")
TRAINING_STAGES = ("skills", "meta")


@dataclass(frozen=True)
class StageTime:
    """One stage: wall time of its process, and of a stage that trains its gradient steps and their rate (data collection included)."""

    stage: str
    wall_s: float
    gradient_steps: int | None = None
    gradient_steps_per_s: float | None = None


class StageFailed(Exception):
    """A stage ended with an error, which it has told already."""


def run_stage(stage: str, run_dir: Path, options: Sequence[str]) -> StageTime:
    """Run one stage and measure it. Raises StageFailed."""
    command = [sys.executable, "-m", "training", stage, "--run", str(run_dir), "--bundle", str(run_dir / "exported"), *options]
    began = time.perf_counter()
    status = subprocess.run(command, env={**os.environ, "MINARI_DATASETS_PATH": str(run_dir / "data")}, check=False).returncode
    wall_s = time.perf_counter() - began
    if status:
        raise StageFailed(f"the stage {stage!r} ended with status {status} after {wall_s:.0f} s")
    steps, rate = training_rate(run_dir / f"{stage}.jsonl") if stage in TRAINING_STAGES else (None, None)
    return StageTime(stage, round(wall_s, 2), steps, rate)


def training_rate(log: Path) -> tuple[int, float]:
    """Gradient steps of a fresh run and their number per second, from the last line of a stage's log."""
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return last["at"], round(last["at"] / last["elapsed_s"], 2)


def table(times: Sequence[StageTime], title: str) -> Table:
    """The measurement for a person."""
    shown = Table("stage", "wall s", "gradient steps", "steps/s", title=title)
    for column in shown.columns[1:]:
        column.justify = "right"
    for item in times:
        trained = (str(item.gradient_steps), f"{item.gradient_steps_per_s:.1f}") if item.gradient_steps is not None else ("", "")
        shown.add_row(item.stage, f"{item.wall_s:.1f}", *trained)
    shown.add_row("all", f"{sum(item.wall_s for item in times):.1f}", "", "", style="bold")
    return shown


def record(times: Sequence[StageTime], options: argparse.Namespace) -> dict[str, object]:
    """The measurement for a file."""
    return {
        "config": options.config,
        "overrides": options.overrides,
        "device": options.device,
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": len(os.sched_getaffinity(0))},
        "wall_s": round(sum(item.wall_s for item in times), 2),
        "stages": [asdict(item) for item in times],
    }


@contextmanager
def new_folder(wanted: Path | None) -> Iterator[Path]:
    """The folder to run in: the wanted one, which must be empty or absent, or a temporary one. Raises FileExistsError."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="skillet-benchmark-") as folder:
            yield Path(folder)
        return
    wanted.mkdir(parents=True, exist_ok=True)
    if any(wanted.iterdir()):
        raise FileExistsError(f"expected an empty folder or none at {wanted}: the benchmark measures a pipeline from nothing")
    yield wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.pipeline", description="Time the whole training pipeline from nothing.")
    parser.add_argument("--config", default="maze", help="a preset or a TOML file (default: %(default)s)")
    parser.add_argument("--run", type=Path, help="an empty folder to run in and keep (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the measurement here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    handed_on = ["--config", options.config, "--device", options.device, "--threads", str(options.threads)]
    handed_on += [word for override in options.overrides for word in ("--set", override)]
    console = Console()
    try:
        with new_folder(options.run) as run_dir:
            times = [run_stage(stage, run_dir, handed_on) for stage in STAGES]
    except (StageFailed, FileExistsError) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        return 1
    console.print(table(times, f"{options.config}, from nothing, on {len(os.sched_getaffinity(0))} CPUs ({options.device})"))
    if options.json:
        options.json.write_text(json.dumps(record(times, options), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
