"""The whole way in one command, ``make demo`` and ``make demo-kitchen``: a service of its own, and a robot that adapts to an unseen task.

Starts ``python -m service`` on a free port with its data in a temporary folder, runs ``python -m clients.simulator`` against it, and stops
it. The pictures, the figures and the service's log stay in the folder ``--out``. Ctrl-C stops everything.
"""

import argparse
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from clients.simulator.arguments import whole_number

READY_LINE = re.compile(r"^Skillet serves .* at (http://\S+)", re.MULTILINE)
Answer = TypeVar("Answer")
START_TIMEOUT_S, STOP_TIMEOUT_S, POLL_S = 60.0, 20.0, 0.05
LONGEST_WAIT_S = 15.0
"""How long one episode may wait for the learner, which on two free cores needs two seconds: the demonstration ends in good time anyway."""


@dataclass(frozen=True)
class Demonstration:
    """What is shown of a robot: a task that its bundle was not trained for, what is in the picture, whether there is a video."""

    task: str
    picture: str
    video: bool


DEMONSTRATIONS = {
    "maze": Demonstration("2,8", "paths before and after", video=False),
    "kitchen": Demonstration("microwave,kettle,top burner,hinge cabinet", "the arm before and after, and its timeline", video=True),
}
"""Name of the environment -> demonstration."""


class ServiceFailed(Exception):
    """The service ended, or did not answer in time; the message ends with what it printed last."""


@contextmanager
def child(command: Sequence[str], stop_signal: signal.Signals, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that Ctrl-C reaches this program alone, which then stops its children in order."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SKILLET_")}
    with open(log or os.devnull, "wb") as output:
        target = output if log else None
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=target, stderr=target, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop_signal)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address of a service that is starting, once it is ready to act. Raises ServiceFailed."""
    deadline = time.monotonic() + START_TIMEOUT_S
    found = _poll(process, log, deadline, lambda: READY_LINE.search(log.read_text(encoding="utf-8", errors="replace")))
    url = found[1]
    _poll(process, log, deadline, lambda: _is_ready(url) or None)
    return url


def _poll(process: subprocess.Popen[bytes], log: Path, deadline: float, ask: Callable[[], Answer | None]) -> Answer:
    while (answer := ask()) is None:
        ended = process.poll()
        if ended is not None or time.monotonic() > deadline:
            what = "did not get ready in time" if ended is None else f"ended with status {ended}"
            raise ServiceFailed(f"the service {what}; its log {log} ends with\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(POLL_S)
    return answer


def _is_ready(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def run(options: argparse.Namespace) -> int:
    """Start the service, run the simulator in it, stop it. Returns the simulator's exit status."""
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "service.log"
    figures, picture, video = (options.out / f"{options.env}.{suffix}" for suffix in ("json", "png", "mp4"))
    with tempfile.TemporaryDirectory(prefix="skillet-demo-") as data_dir:
        serve = [sys.executable, "-m", "service", "--bundle", str(options.bundle), "--port", "0", "--data-dir", data_dir]
        with child(serve, signal.SIGTERM, log) as service:
            url = wait_until_ready(service, log)
            print(f"The service runs at {url} with {options.bundle}. The task: {options.env} {options.task}", flush=True)
            simulate = [
                sys.executable, "-m", "clients.simulator", "--url", url, "--env", options.env, "--task", options.task,
                "--episodes", str(options.episodes), "--seed", str(options.seed),
                "--max-wait-s", str(LONGEST_WAIT_S), "--json", str(figures), "--plot", str(picture),
                *(() if options.conditioning is None else ("--conditioning", str(options.conditioning))),
                *(("--video", str(video)) if options.video else ()),
            ]  # fmt: skip
            with child(simulate, signal.SIGINT) as simulator:
                status = simulator.wait()
    if status == 0:
        print(f"The service is stopped. It left {DEMONSTRATIONS[options.env].picture}: {picture}")
        if options.video:
            print(f"The first episode beside the last: {video}")
        print(f"Every episode: {figures}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m clients.examples.demo", description="Show a robot adapt, with a service of its own.")
    parser.add_argument("--env", choices=DEMONSTRATIONS, default="maze", help="which robot (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="default: the environment's in bundles/")
    parser.add_argument("--task", help="the simulator client's --task (default: one that the bundle was not trained for)")
    parser.add_argument("--episodes", type=whole_number(1), default=40, help="default: %(default)s")
    parser.add_argument("--conditioning", type=whole_number(0), help="exploring episodes among them (default: as the bundle says)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="default: %(default)s")
    parser.add_argument("--no-video", dest="video", action="store_const", const=False, help="leave out the kitchen's video")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures, figures and log (default: %(default)s)")
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what it leaves open is the environment's."""
    options = _parser().parse_args(arguments)
    shown = DEMONSTRATIONS[options.env]
    options.bundle = options.bundle or Path("bundles") / options.env
    options.task = options.task or shown.task
    options.video = shown.video if options.video is None else options.video
    return options


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # once is enough: a second Ctrl-C must not leave a child behind
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration. Returns the exit status."""
    options = parse_arguments(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    if not (options.bundle / "manifest.json").is_file():
        train = f"make train CONFIG={options.env}"
        print(f"no bundle at {options.bundle}: train one with '{train}', or name another with --bundle", file=sys.stderr)
        return 2
    try:
        return run(options)
    except ServiceFailed as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
