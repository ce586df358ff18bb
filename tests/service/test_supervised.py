"""How a child process that ends is started again."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from service import processes
from service.processes import Supervised


def ends_after(seconds: float, begun: list[float], enough: threading.Event, count: int):
    def spawn() -> "subprocess.Popen[bytes]":
        begun.append(time.monotonic())
        if len(begun) == count:
            enough.set()
        return subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"])

    return spawn


def test_a_process_that_fails_at_its_start_is_started_again_less_and_less_often() -> None:
    begun: list[float] = []
    enough = threading.Event()
    child = Supervised("crashing", ends_after(0, begun, enough, 5))
    child.start()
    assert enough.wait(60)
    child.stop()
    waits = [after - before for before, after in itertools.pairwise(begun)]
    assert waits[3] >= 1.6  # 0.2, 0.4, 0.8, 1.6 s, and what a start takes


def test_a_process_that_had_started_is_started_again_at_once_however_often_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_STARTED_S", 0.0)
    begun: list[float] = []
    enough = threading.Event()
    child = Supervised("killed", ends_after(600, begun, enough, 8))
    child.start()
    killed: dict[int | None, float] = {None: 0.0}
    while not enough.is_set():
        if (pid := child.pid) not in killed:
            killed[pid] = time.monotonic()
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    child.stop()
    waits = [after - at for at, after in zip(list(killed.values())[1:], begun[1:], strict=False)]
    assert len(waits) == 7
    assert max(waits) < 1.6
