"""The command ``python -m service --bundle DIR``: starts Redis (unless SKILLET_REDIS_URL is set), learners and API processes, and starts
each again when it dies; stops all of them."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from service.errors import StartupError
from service.exposure import check_exposure, check_tls
from service.logs import set_up_logs
from service.metrics_files import METRICS_DIR
from service.processes import Supervised, bound, stop_all
from service.reaper import Reaper
from service.redis_server import EmbeddedRedis
from service.settings import Settings, read_settings
from service.storage import connect
from training.contract.bundle import Bundle
from training.contract.errors import SkilletError
from training.contract.signature import PublicKey


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit code: 0 after a clean stop, 2 when it cannot start."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["sessions"]:
        from service.sessions_cli import main as sessions

        return _printing(sessions, words[1:])
    if words[:1] == ["tokens"]:
        from service.tokens_cli import main as tokens

        return _printing(tokens, words[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with ExitStack() as stack:
            settings = settings_of(arguments)
            set_up_logs(settings.log_format, settings.log_level)
            _serve(settings, stack)
    except SkilletError as error:
        print(f"skillet: {error}", file=sys.stderr)
        return 2
    return 0


def _printing(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command that prints. Whoever reads it may have seen enough before its end (``| head``)."""
    try:
        code = command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it ends
        return 128 + signal.SIGPIPE
    return code


def settings_of(arguments: list[str] | None) -> Settings:
    """Settings from the environment, overridden by the command line. Raises StartupError for a value that does not fit."""
    parser = argparse.ArgumentParser("python -m service", description="Serve adapting policies.")
    parser.add_argument("--bundle", dest="bundles", action="append", type=Path, help="bundle directory; may be given again")
    parser.add_argument("--bundle-key", dest="bundle_keys", action="append", type=Path,
                        help="public key (Ed25519, PEM): refuse bundles that it did not sign; may be given again")  # fmt: skip
    parser.add_argument("--port", type=int, help="default 8000; 0 takes any free port")
    parser.add_argument("--host", help="default 127.0.0.1: this machine only")
    parser.add_argument("--insecure-no-auth", action="store_const", const=True, help="ask nobody for a token, wherever it listens")
    parser.add_argument("--first-token", action="store_const", const=True,
                        help="beyond this machine, while there is no token: make an admin's and print it, this once")  # fmt: skip
    parser.add_argument("--tls-cert", type=Path, help="certificate (PEM): listen with TLS; with --tls-key")
    parser.add_argument("--tls-key", type=Path, help="the certificate's private key (PEM)")
    parser.add_argument("--data-dir", type=Path, help="where the embedded Redis keeps its data; default .skillet")
    parser.add_argument("--workers", type=int, help="API processes that serve; default 1")
    parser.add_argument("--learners", type=int, help="learner processes; default 1")
    parser.add_argument("--no-learner", dest="learners", action="store_const", const=0, help="start no learner")
    return read_settings(**{name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None})


def _serve(settings: Settings, stack: ExitStack) -> None:
    check_tls(settings)
    digests = _check_bundles(settings)
    listener = stack.enter_context(_listen(settings))
    redis_url = settings.redis_url or _start_redis(settings, stack)
    settings = settings.model_copy(update={"redis_url": redis_url})
    _check_redis(settings, redis_url)
    learners: list[Supervised] = []
    stack.callback(stop_all, learners)
    for index in range(settings.learners):
        learners.append(_learner(settings, digests, redis_url, index))
        learners[-1].start()
    stack.enter_context(Reaper(stack.enter_context(connect(redis_url, settings.redis_timeout_s)), settings.reap_interval_s))
    bundles = _start_workers(settings, digests, listener, stack)
    print(_ready_line(settings, listener, bundles, learners), flush=True)
    threading.Event().wait()  # until a signal raises SystemExit


def _check_bundles(settings: Settings) -> list[str]:
    """Before anything is started. The API processes check what the graphs answer.

    Returns the digests, in order. No process serves another: one that starts again later might find that its bundle was replaced.
    """
    if not settings.bundles:
        raise StartupError("no bundle to serve: pass --bundle DIR, for example --bundle bundles/maze")
    keys = [PublicKey.read(file) for file in settings.bundle_keys]
    return [Bundle.load(path, keys).manifest.digest for path in settings.bundles]


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
    redis = EmbeddedRedis(settings.data_dir, strict=settings.durability == "strict")
    stack.callback(redis.close)
    server = Supervised("redis", redis.spawn)
    stack.callback(server.stop)
    server.start()
    return redis.url


def _check_redis(settings: Settings, url: str) -> None:
    try:
        with connect(url, settings.redis_timeout_s) as client:
            client.ping()
            check_exposure(settings, client)
            if settings.durability == "strict":
                _check_strict(client)
    except (RedisError, ValueError) as error:
        raise StartupError(f"Redis at {_without_password(url)} does not answer: {error}; start it, or unset SKILLET_REDIS_URL") from error


def _check_strict(client: "Redis") -> None:
    """Raise StartupError unless this Redis puts every write on disk before it answers."""
    found = {name: client.config_get(name).get(name) for name in ("appendonly", "appendfsync")}
    if found != {"appendonly": "yes", "appendfsync": "always"}:
        raise StartupError(f"SKILLET_DURABILITY=strict needs a Redis with appendonly yes and appendfsync always, this one has {found}")


def _start_workers(settings: Settings, digests: list[str], listener: socket.socket, stack: ExitStack) -> dict[str, str]:
    """Start the API processes, and wait until the first has loaded. Returns the bundles' digests by name."""
    slots = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skillet-slots-")))
    for index in range(settings.workers):
        (slots / str(index)).touch()
    metrics = stack.enter_context(tempfile.TemporaryDirectory(prefix="skillet-metrics-"))
    first = _ApiProcess(settings, digests, listener, slots, metrics)
    workers: list[Supervised] = []
    stack.callback(stop_all, workers)
    stack.callback(listener.close)  # first of all: new connections are refused while the API processes finish what they have
    for index in range(settings.workers + settings.standby_workers):
        process = first if index == 0 else _ApiProcess(settings, digests, listener, slots, metrics)
        workers.append(Supervised(f"API process {index}", process.spawn))
        workers[-1].start()
    return first.bundles()


class _ApiProcess:
    """Makes API processes, and reads what the first of them reports."""

    def __init__(self, settings: Settings, digests: list[str], listener: socket.socket, slots: Path, metrics: str) -> None:
        self._settings, self._listener = settings, listener
        self._command = [sys.executable, "-m", "service.api_worker", "--slots", str(slots), "--listen-fd", str(listener.fileno())]
        for digest in digests:
            self._command += ["--digest", digest]
        self._environment = {**os.environ, METRICS_DIR: metrics}
        self._report: int | None = None

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start one."""
        if self._report is not None:  # started again: nobody waits for its report
            return self._spawn([])
        self._report, writing = os.pipe()
        try:
            return self._spawn(["--report-fd", str(writing)], writing)
        finally:
            os.close(writing)

    def _spawn(self, options: list[str], *fds: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            bound([*self._command, *options]),
            stdin=subprocess.PIPE,
            pass_fds=[self._listener.fileno(), *fds],
            env=self._environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin as settings:
            settings.write(self._settings.model_dump_json().encode())
        return process

    def bundles(self) -> dict[str, str]:
        """What the first process serves, once it has loaded. Raises StartupError with its reason when it cannot."""
        assert self._report is not None
        with os.fdopen(self._report) as report:
            line = report.readline()
        found = json.loads(line or '{"error": "the API process ended while it started; its messages are above"}')
        if "error" in found:
            raise StartupError(found["error"])
        return dict(found["bundles"])


def _learner(settings: Settings, digests: list[str], redis_url: str, index: int) -> Supervised:
    name = f"{socket.gethostname()}-{os.getpid()}-{index}"
    command = [sys.executable, "-m", "service.worker", "--name", name]
    for bundle, digest in zip(settings.bundles, digests, strict=True):
        command += ["--bundle", str(bundle), "--digest", digest]
    for key in settings.bundle_keys:
        command += ["--bundle-key", str(key)]
    environment = {**os.environ, "SKILLET_REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"}

    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen(bound(command), stdin=subprocess.DEVNULL, env=environment, start_new_session=True)

    return Supervised(f"learner {index}", spawn)


def _ready_line(settings: Settings, listener: socket.socket, bundles: dict[str, str], learners: list[Supervised]) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "http" if settings.tls_cert is None else "https"
    names = ", ".join(f"{name} ({digest[:12]})" for name, digest in bundles.items())
    redis = _without_password(str(settings.redis_url))
    pids = ", ".join(str(learner.pid) for learner in learners) or "none"
    return f"Skillet serves {names} at {scheme}://{host}:{listener.getsockname()[1]} (/docs) | Redis {redis} | learner {pids}"


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _stop(number: int, frame: FrameType | None) -> Any:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the stopping of the children
    raise SystemExit(0)
