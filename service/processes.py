"""Child processes: started, started again when they die, stopped, and never left behind."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG: Final = 1
_STOP_TIMEOUT_S: Final = 10.0
_MAX_DELAY_S: Final = 10.0
_STARTED_S: Final = 3.0
"""A process that lived for longer did not fail at its start, and is started again at once, however often others kill it."""

Spawn = Callable[[], subprocess.Popen[bytes]]


def bound(command: list[str]) -> list[str]:
    """The command line that runs ``command`` as a child which ends when this process does, even by kill -9 (Linux only).

    The kernel watches the thread that makes the child: make it in one that lives until the process ends.
    """
    return [sys.executable, "-P", __file__, str(os.getpid()), *command]


def _bind_and_run(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)


class Supervised:
    """A child process in the care of a thread of its own, which makes it, waits for it, and makes it again when it dies."""

    def __init__(self, name: str, spawn: Spawn) -> None:
        self.name = name
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | None = None
        self._error: Exception | None = None
        self._started, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Make the child; raises what making it raised."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    def begin_stop(self) -> None:
        """Ask the child to end, and do not start it again."""
        self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """End the child and wait for it; one that does not end in time is killed."""
        self.begin_stop()
        process = self._process
        if process is not None and process.poll() is None:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(_STOP_TIMEOUT_S)

    def _watch(self) -> None:
        try:
            process = self._process = self._spawn()
        except Exception as error:
            self._error = error
            return
        finally:
            self._started.set()
        delay_s = 0.1
        while True:
            began = time.monotonic()
            if self._stopping.is_set():  # stop() may have come while the child was being made
                process.terminate()
            code = process.wait()
            delay_s = 0.1 if time.monotonic() - began > _STARTED_S else min(2 * delay_s, _MAX_DELAY_S)
            if self._stopping.wait(delay_s):
                return
            _log.warning("%s (process %s) ended with %s; it is started again", self.name, process.pid, code)
            process = self._process = self._spawn_again(process)

    def _spawn_again(self, ended: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        try:
            return self._spawn()
        except Exception as error:
            _log.error("%s could not be started again: %s", self.name, error)
            return ended


def stop_all(children: Collection[Supervised]) -> None:
    """End the children, all at the same time."""
    for child in children:
        child.begin_stop()
    for child in children:
        child.stop()


if __name__ == "__main__":
    _bind_and_run(int(sys.argv[1]), sys.argv[2:])
