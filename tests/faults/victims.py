"""Finding and killing the processes of a running service."""

import os
import signal
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
    return any("/skillet-" in link for link in links)


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
