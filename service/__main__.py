"""``python -m service --bundle DIR``: starts Redis (unless SKILLET_REDIS_URL is set), the learner and the API; stops all of them."""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from redis.exceptions import RedisError

from service.app import create_app, load_bundles
from service.errors import StartupError
from service.policies import Networks
from service.processes import Supervised, bound
from service.redis_server import EmbeddedRedis
from service.settings import Settings
from service.storage import connect
from training.contract.errors import SkilletError

_KEEP_ALIVE_S = 60  # a control loop may pause between two episodes


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit code: 0 after a clean stop, 2 when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with ExitStack() as stack:
            _serve(read_settings(arguments), stack)
    except SkilletError as error:
        print(f"skillet: {error}", file=sys.stderr)
        return 2
    return 0


def read_settings(arguments: list[str] | None) -> Settings:
    """Settings from the environment, overridden by the command line. Raises StartupError for a value that does not fit."""
    parser = argparse.ArgumentParser("python -m service", description="Serve adapting policies.")
    parser.add_argument("--bundle", dest="bundles", action="append", type=Path, help="bundle directory; may be given again")
    parser.add_argument("--port", type=int, help="default 8000; 0 takes any free port")
    parser.add_argument("--host", help="default 127.0.0.1: this machine only")
    parser.add_argument("--data-dir", type=Path, help="where the embedded Redis keeps its data; default .skillet")
    parser.add_argument("--learners", type=int, help="learner processes; default 1")
    parser.add_argument("--no-learner", dest="learners", action="store_const", const=0, help="start no learner")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise StartupError(f"setting {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error


def _serve(settings: Settings, stack: ExitStack) -> None:
    bundles = load_bundles(settings.bundles, envelope=settings.envelope)
    listener = stack.enter_context(_listen(settings))
    redis_url = settings.redis_url or _start_redis(settings, stack)
    settings = settings.model_copy(update={"redis_url": redis_url})
    _check_redis(settings, redis_url)
    learners = [_start_learner(settings, redis_url, index, stack) for index in range(settings.learners)]
    server = _Server(create_app(settings, bundles), _ready_line(settings, listener, bundles, learners))
    server.run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise StartupError(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; stop the other program or pass another --port"
        ) from error
    return listener


def _start_redis(settings: Settings, stack: ExitStack) -> str:
    redis = EmbeddedRedis(settings.data_dir)
    stack.callback(redis.close)
    server = Supervised("redis", redis.spawn)
    stack.callback(server.stop)
    server.start()
    return redis.url


def _check_redis(settings: Settings, url: str) -> None:
    try:
        with connect(url, settings.redis_timeout_s) as client:
            client.ping()
    except (RedisError, ValueError) as error:
        raise StartupError(f"Redis at {_without_password(url)} does not answer: {error}; start it, or unset SKILLET_REDIS_URL") from error


def _start_learner(settings: Settings, redis_url: str, index: int, stack: ExitStack) -> Supervised:
    name = f"{socket.gethostname()}-{os.getpid()}-{index}"
    command = [sys.executable, "-m", "service.worker", "--name", name]
    for bundle in settings.bundles:
        command += ["--bundle", str(bundle)]
    environment = {**os.environ, "SKILLET_REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"}

    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen(bound(command), stdin=subprocess.DEVNULL, env=environment, start_new_session=True)

    learner = Supervised(f"learner {index}", spawn)
    stack.callback(learner.stop)
    learner.start()
    return learner


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready, and lets waiting requests know when it stops."""

    def __init__(self, app: FastAPI, ready_line: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                access_log=False,
                log_level="warning",
                timeout_graceful_shutdown=2,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        self._app, self._ready_line = app, ready_line

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._app.state.stopping = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            print(self._ready_line, flush=True)


def _ready_line(settings: Settings, listener: socket.socket, bundles: dict[str, Networks], learners: list[Supervised]) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    names = ", ".join(f"{name} ({found.digest[:12]})" for name, found in bundles.items())
    redis = _without_password(str(settings.redis_url))
    pids = ", ".join(str(learner.pid) for learner in learners) or "none"
    return f"Skillet serves {names} at http://{host}:{listener.getsockname()[1]} (/docs) | Redis {redis} | learner {pids}"


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _stop(number: int, frame: FrameType | None) -> Any:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the stopping of the children
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
