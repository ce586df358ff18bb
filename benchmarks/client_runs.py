"""Many runs of ``python -m clients.simulator``, a few at once; a run that was finished is never made again."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

STOP_TIMEOUT_S = 20.0


class Run(NamedTuple):
    """One session: a task as ``--task`` takes it, and the seed."""

    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, seed {self.seed}"


@dataclass
class ClientRuns:
    """What all runs have in common, and the folder where each leaves its JSON."""

    url: str
    env: str
    episodes: int
    conditioning: int
    folder: Path
    options: Sequence[str] = ()
    _running: set["subprocess.Popen[str]"] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def file(self, run: Run) -> Path:
        """Where a run's JSON lies."""
        return self.folder / f"{run.task.replace(',', '-').replace(' ', '_')}-seed{run.seed}.json"

    def finished(self, run: Run) -> bool:
        """Whether a run is there and long enough."""
        file = self.file(run)
        return file.exists() and len(json.loads(file.read_text())["episodes"]) >= self.episodes

    def run_missing(self, runs: Sequence[Run], jobs: int) -> list[str]:
        """Make the runs that are not finished, ``jobs`` at once. Returns what the failed ones said.

        An interruption stops the clients, which close their sessions; what they had not finished is not kept.
        """
        missing = [run for run in runs if not self.finished(run)]
        failed: list[str] = []
        columns = (TextColumn("[bold]episodes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(soft_wrap=True)) as progress, ThreadPoolExecutor(jobs) as pool:
            bar = progress.add_task("", total=len(runs) * self.episodes, completed=(len(runs) - len(missing)) * self.episodes)
            try:
                made = {pool.submit(self._make, run, progress, bar): run for run in missing}
                for number, future in enumerate(as_completed(made), len(runs) - len(missing) + 1):
                    error = future.result()
                    failed += [error] if error else []
                    progress.print(f"{number} of {len(runs)}: {made[future]}: {error or self._told(made[future])}", highlight=False)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
        return failed

    def _make(self, run: Run, progress: Progress, bar: TaskID) -> str | None:
        """Run one client to its end; its file takes its place only when all episodes are there. Returns what went wrong, if anything."""
        scratch = self.file(run).with_suffix(".part.json")
        command = [sys.executable, "-m", "clients.simulator", "--url", self.url, "--env", self.env, "--task", run.task]
        command += ["--seed", str(run.seed), "--episodes", str(self.episodes), "--conditioning", str(self.conditioning)]
        process = self._start([*command, *self.options, "--json", str(scratch)])
        if process is None or process.stdout is None or process.stderr is None:
            return "stopped"
        with process:
            said: list[str] = []
            listener = threading.Thread(target=said.extend, args=(process.stderr,))
            listener.start()
            for line in process.stdout:
                if line.startswith("episode "):
                    progress.advance(bar)
            listener.join()
        with self._lock:
            self._running.discard(process)
        if process.returncode != 0:
            scratch.unlink(missing_ok=True)
            return (said or [f"status {process.returncode}"])[-1].strip()
        scratch.replace(self.file(run))
        return None

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[str] | None":
        """A client in a session of its own, so that Ctrl-C reaches it once, from here. One thread each: several share the cores."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
            return process

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
            for process in self._running:
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _told(self, run: Run) -> str:
        returns = [episode["return"] for episode in json.loads(self.file(run).read_text())["episodes"]]
        parts = {"conditioning": returns[: self.conditioning], "next five": returns[self.conditioning :][:5], "last ten": returns[-10:]}
        return ", ".join(f"{name} {sum(part) / len(part):.2f}" for name, part in parts.items() if part)
