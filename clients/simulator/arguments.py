"""The command line of ``python -m clients.simulator``."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from clients.simulator.tasks import DOMAINS
from clients.simulator.video import LARGEST_PANELS

BAD_ARGUMENTS = 2
LARGEST_FLEET = 256  # what the service takes in one request
VIDEO_EPISODES = "which: numbers, counted from 0, 'first' and 'last' (default: %(default)s)"
DESCRIPTION = """\
Open a session, run episodes of a simulated robot in it, one request per control step, and print what happened.

A simulator runs many times faster than the robot that it stands for. So that the learner has about the wall time that it would have
beside a robot, the client waits between episodes until the learner has caught up, at most --max-wait-s each time; --no-wait turns it off.
A learner that does nothing for that long is not waited for again until it does.

With --num-envs B, B robots with the seeds S to S + B - 1 run the episodes side by side, each as it would alone. The client waits for the
learner at most --max-wait-s for all of them together.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_ARGUMENTS, f"{self.prog}: {message}\n")


def whole_number(lowest: int) -> Any:
    """A type for argparse: a whole number of at least ``lowest``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {lowest}, got {text!r}")
        return value

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds of at least 0, got {text!r}")
    return value


def _episodes(text: str) -> tuple[int | str, ...]:
    chosen = tuple(int(part) if part.isdecimal() else part for part in text.replace(" ", "").split(","))
    if len(chosen) > LARGEST_PANELS or any(isinstance(part, str) and part not in ("first", "last") for part in chosen):
        raise argparse.ArgumentTypeError(
            f"expected up to {LARGEST_PANELS} numbers of episodes, 'first' or 'last' with commas, got {text!r}"
        )
    return chosen


def _writable_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file in a directory that is there and can be written, got {text!r}")
    return path


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a mistake in it ends the program with status 2."""
    parser = _Parser("python -m clients.simulator", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is (default: %(default)s)")
    parser.add_argument("--token", help="where the service asks for one; better in SKILLET_TOKEN, where other users do not see it")
    parser.add_argument("--ca-file", metavar="CA.pem", help="certificates that vouch for an https:// service (default: SKILLET_CA_FILE)")
    parser.add_argument("--env", required=True, help=f"which robot: {', '.join(DOMAINS)}")
    parser.add_argument("--task", required=True, help="; ".join(f"{name}: {domain.task_format}" for name, domain in DOMAINS.items()))
    parser.add_argument("--episodes", type=whole_number(1), required=True, metavar="N", help="how many episodes to run")
    parser.add_argument("--conditioning", type=whole_number(0), metavar="K", help="exploring episodes first (default: as the bundle says)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of the session and of the resets (default: 0)")
    parser.add_argument("--json", type=_writable_file, metavar="OUT.json", help="write every episode's figures here")
    parser.add_argument(
        "--plot", type=_writable_file, metavar="OUT.png", help="draw what it did before and after, and how each episode went"
    )
    parser.add_argument("--video", type=_writable_file, metavar="OUT.mp4", help="draw some episodes side by side")
    parser.add_argument("--video-episodes", type=_episodes, default="first,last", metavar="N,...", help=VIDEO_EPISODES)
    parser.add_argument("--no-finetune", action="store_true", help="adapt by inferring the task only")
    parser.add_argument("--deterministic", action="store_true", help="take each skill's mean instead of drawing it")
    parser.add_argument("--bundle", help="which of the service's bundles (default: the first that was trained in this environment)")
    parser.add_argument("--session", metavar="ID", help="go on with a session, with its own seed and K, instead of opening one")
    parser.add_argument("--keep", action="store_true", help="leave the session open at the end")
    parser.add_argument("--max-wait-s", type=_seconds, default=60.0, metavar="S", help="longest wait for the learner (default: 60)")
    parser.add_argument("--no-wait", dest="max_wait_s", action="store_const", const=0.0, help="do not wait for the learner")
    parser.add_argument(
        "--num-envs", type=whole_number(1), default=1, metavar="B", help="robots that run together, B steps in one request (default: 1)"
    )
    options = parser.parse_args(arguments)
    alone = [name for name in ("session", "keep", "plot", "video") if getattr(options, name)]
    if options.num_envs > 1 and alone:
        parser.error(f"--num-envs is for runs without --{', --'.join(alone)}")
    if options.num_envs > LARGEST_FLEET:
        parser.error(f"--num-envs: at most {LARGEST_FLEET} steps fit in one request, got {options.num_envs}")
    return options
