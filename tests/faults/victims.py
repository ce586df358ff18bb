"""Finding and killing the processes of a running service."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.service.running import RunningService, running

KINDS = ("api", "standby", "learner", "redis", "all")


def serving(service: RunningService) -> list[int]:
    """The API processes that hold a slot."""
    holders = {int(line.split()[-4]) for line in Path("/proc/locks").read_text().splitlines() if "FLOCK" in line and "->" not in line}
    return [pid for pid in running(service.process.pid, "service.api_worker") if pid in holders]


def loaded(pid: int) -> bool:
    """Whether an API process waits for a slot: it has the lock files open."""
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(str(fd.readlink()))
    return any("/skillet-slots-" in link for link in links)


def find(service: RunningService, kind: str) -> list[int]:
    main, api = service.process.pid, serving(service)
    match kind:
        case "api":
            return api
        case "standby":
            return [pid for pid in running(main, "service.api_worker") if pid not in api and loaded(pid)]
        case "learner":
            return running(main, "service.worker")
        case "redis":
            return running(main, "redis-server")
        case _:
            return [pid for each in ("api", "learner", "redis") for pid in find(service, each)]


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Victims:
    """The processes of a service, each killed while it is at work: one death of a kind at a time."""

    def __init__(self, service: RunningService) -> None:
        self._service, self._updates, self._seen = service, 0.0, 0.0

    def await_all(self, kind: str) -> list[int]:
        """Wait until the victims of a kind are there (again) and an API process stands by; a learner has learned since it last died."""
        deadline = time.monotonic() + 300
        while True:
            found, wanted = find(self._service, kind), 3 if kind == "all" else 1
            if len(found) >= wanted and find(self._service, "standby") and (kind not in ("learner", "all") or self._has_learned()):
                return found
            assert time.monotonic() < deadline, f"no {kind} to kill"
            time.sleep(0.02)

    def _has_learned(self) -> bool:
        before, self._seen = self._updates, updates(self._service)
        return self._seen > before

    def died(self, kind: str) -> None:
        """Note it."""
        if kind in ("learner", "all"):
            self._updates = self._seen


def updates(service: RunningService) -> float:
    """Gradient steps so far, of all learners."""
    text = service.get("/metrics").text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("skillet_learner_updates_total ")))
