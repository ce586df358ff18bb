"""Server processes that are measured: started, waited for, weighed and stopped."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 120.0


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def started(command: Sequence[str], port: int, *, log: Path, **environment: str) -> Iterator[int]:
    """Run a server until the context is left; yields its process id once it listens. Raises RuntimeError when it ends before."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment}, start_new_session=True)
    try:
        _await_listening(process, port, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def uvicorn(app: str, port: int) -> list[str]:
    """The command line that serves an ASGI application as Skillet is served: uvloop, httptools, no access log."""
    options = ["--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log", "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", app, "--port", str(port), *options]


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [pid, *(below for child in children for below in family(child))]


def peak_mb(pids: Sequence[int]) -> float:
    """Sum of the largest resident memory that each process had, in MB."""
    return sum(_status_kb(pid, "VmHWM:") for pid in pids) / 1e3


def resident_mb(pids: Sequence[int]) -> float:
    """Sum of the resident memory now, in MB."""
    return sum(_status_kb(pid, "VmRSS:") for pid in pids) / 1e3


def _status_kb(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _await_listening(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise RuntimeError("the server did not start: " + " | ".join(said)) from None
            time.sleep(0.02)
