"""``python -m service.api_worker``: one API process, started by ``python -m service``, which hands it settings and the listening socket.

There are more of these than serve at a time. Each loads everything, then waits for one of as many lock files as shall serve. When a process
dies, by whatever death, the kernel lets its lock go, and one that waits takes over within milliseconds: no connection that waits in the
shared socket's queue is lost.
"""

import argparse
import fcntl
import gc
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

import uvicorn
from fastapi import FastAPI

from service.app import create_app, load_bundles
from service.direct_http import DirectHttp
from service.direct_stream import DirectStream
from service.lane import Lane
from service.logs import set_up_logs
from service.settings import Settings
from training.contract.errors import SkilletError

_log = logging.getLogger(__name__)
_KEEP_ALIVE_S: Final = 60  # a control loop may pause between two episodes
_LOOK_S: Final = 0.01  # between two looks for a free slot, of which there may be several


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit code. Reads the settings, JSON, from standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    parser = argparse.ArgumentParser("python -m service.api_worker")
    parser.add_argument("--listen-fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--report-fd", type=int, help="where to write one line, once loaded or when that fails; without it, the log")
    parser.add_argument("--digest", dest="digests", action="append", default=[], help="that a bundle must have, in the settings' order")
    parser.add_argument("--slots", type=Path, required=True, help="folder with one lock file for each process that shall serve")
    options = parser.parse_args(arguments)
    settings = Settings(**json.loads(sys.stdin.read()))
    set_up_logs(settings.log_format, settings.log_level)
    try:
        bundles = load_bundles(settings, options.digests)
        app = create_app(settings, bundles)
    except SkilletError as error:
        if options.report_fd is None:
            _log.error("this API process cannot start: %s", error)
        else:
            _report(options.report_fd, {"error": str(error)})
        return 2
    if options.report_fd is not None:
        _report(options.report_fd, {"bundles": {name: found.digest for name, found in bundles.items()}})
    gc.collect()
    gc.freeze()  # what was loaded stays: the collector need not look through it in the middle of a step
    slot = _await_slot(options.slots)
    Server(app, settings, slot.close).run(sockets=[socket.socket(fileno=options.listen_fd)])
    return 0


def config_of(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=DirectHttp,
        ws=DirectStream,
        ws_max_size=app.state.max_body_bytes,
        ws_per_message_deflate=False,
        ws_ping_timeout=_KEEP_ALIVE_S,
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
        timeout_keep_alive=_KEEP_ALIVE_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


class Server(uvicorn.Server):
    """uvicorn that drains: when it stops, the process that stands by takes over at once; waiting requests are answered, new ones
    refused."""

    def __init__(self, app: FastAPI, settings: Settings, hand_over: Callable[[], None]) -> None:
        super().__init__(config_of(app, settings))
        self._app, self._hand_over = app, hand_over
        lane: Lane | None = app.state.lane
        app.state.in_flight = lambda: len(self.server_state.tasks) + (0 if lane is None else len(lane))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._app.state.stopping = True
        self._hand_over()
        super().handle_exit(sig, frame)


def _report(fd: int, said: dict[str, Any]) -> None:
    with os.fdopen(fd, "w") as report:
        report.write(json.dumps(said) + "\n")


def _await_slot(folder: Path) -> IO[bytes]:
    """Take a lock that no process holds, as soon as there is one."""
    slots = [file.open("rb") for file in sorted(folder.iterdir())]
    while True:
        for slot in slots:
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return slot
        time.sleep(_LOOK_S)


def _stop(number: int, frame: FrameType | None) -> Any:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
