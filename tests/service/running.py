"""Starts ``python -m service`` as a real process, for tests."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import urllib3


class RunningService:
    """A service in a process of its own, ready when this is made. Use as a context manager: leaving it kills what is left."""

    def __init__(self, bundle: Path, data_dir: Path, *options: str, **environment: str) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open until __exit__; a pipe that nobody reads would stop the service once full)
        self.process = subprocess.Popen(
            command(bundle, data_dir, *options),
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=clean_environment() | environment,
        )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        match = re.search(r"https?://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)", self.ready_line)
        if match is None:
            raise AssertionError(f"not started: {self.ready_line!r} {self.log()}")
        self.pool = urllib3.HTTPConnectionPool("127.0.0.1", int(match.group(1)), maxsize=1, retries=False, timeout=70.0)
        self.pids = [self.process.pid, *descendants(self.process.pid)]

    def __enter__(self) -> "RunningService":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._stderr.close()
        await_end(self.pids)

    def log(self) -> str:
        """What it wrote to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read()

    def post(self, path: str, **body: Any) -> "Reply":
        return Reply(self.pool.request("POST", path, json=body))

    def get(self, path: str) -> "Reply":
        return Reply(self.pool.request("GET", path))

    def patch(self, path: str, **body: Any) -> "Reply":
        return Reply(self.pool.request("PATCH", path, json=body))

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


class Reply:
    """An answer, in the form that `tests.conftest.Driver` reads."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.status_code, self.text = response.status, response.data.decode()
        self._response = response

    def json(self) -> Any:
        return self._response.json()


class Remote:
    """Gives `tests.conftest.Driver` a running service as if it were a test client."""

    def __init__(self, service: RunningService) -> None:
        self._service = service

    def post(self, path: str, json: Any = None) -> Reply:
        return self._service.post(path, **(json or {}))

    def get(self, path: str) -> Reply:
        return self._service.get(path)

    def patch(self, path: str, json: Any) -> Reply:
        return self._service.patch(path, **json)


def command(bundle: Path, data_dir: Path, *options: str) -> list[str]:
    port = [] if "--port" in options else ["--port", "0"]
    return [sys.executable, "-m", "service", "--bundle", str(bundle), "--data-dir", str(data_dir), *port, *options]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SKILLET_")} | {"OMP_NUM_THREADS": "1"}


def fails_to_start(bundle: Path, data_dir: Path, *options: str, **environment: str) -> str:
    """Start a service that must not start. Returns its one line on stderr."""
    ended = subprocess.run(
        command(bundle, data_dir, *options), capture_output=True, text=True, timeout=60, env=clean_environment() | environment, check=False
    )
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.strip().splitlines()
    return line


def descendants(pid: int) -> list[int]:
    """Process ids of children, and theirs."""
    found = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in _read(file).split()]
    return found + [below for child in found for below in descendants(child)]


def running(pid: int, what: str) -> list[int]:
    """Process ids of the descendants of ``pid`` whose command line holds ``what``, once it is their own."""
    lines = {child: _read(Path(f"/proc/{child}/cmdline")) for child in descendants(pid)}
    return [child for child, line in lines.items() if what in line and "processes.py" not in line]


def mentioning(path: Path) -> list[int]:
    """Process ids of those whose command line names ``path``."""
    lines = {int(file.parent.name): _read(file) for file in Path("/proc").glob("[0-9]*/cmdline")}
    return [pid for pid, line in lines.items() if str(path) in line]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal (proc(5), SigCgt)."""
    caught = re.search(r"SigCgt:\s*(\w+)", _read(Path(f"/proc/{pid}/status")))
    return caught is not None and bool(int(caught.group(1), 16) >> (number - 1) & 1)


def await_end(pids: list[int], timeout_s: float = 15.0) -> None:
    """Wait until none of the processes is left; raises AssertionError naming those that are."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


def _read(file: Path) -> str:
    """What a file of /proc holds; nothing when its process or thread has ended."""
    try:
        return file.read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
