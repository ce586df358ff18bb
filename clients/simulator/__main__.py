"""``python -m clients.simulator``: run a simulated robot against the service and say how it went."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
from rich.console import Console

from clients.sdk import Session, SkilletClient, SkilletError
from clients.simulator.report import Display, EpisodeResult, summary_table, times_line, write_json
from clients.simulator.run import Simulation
from clients.simulator.tasks import DOMAINS, Domain, find_domain

BAD_ARGUMENTS, RUN_FAILED, INTERRUPTED = 2, 1, 130
PLAIN_WIDTH = 140  # columns where the output is no terminal
DESCRIPTION = """\
Open a session, run episodes of a simulated robot in it, one request per control step, and print what happened.

A simulator runs many times faster than the robot that it stands for. So that the learner has about the wall time that it would have
beside a robot, the client waits between episodes until the learner has caught up, at most --max-wait-s each time; --no-wait turns it off.
A learner that does nothing for that long is not waited for again until it does.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_ARGUMENTS, f"{self.prog}: {message}\n")


def _whole_number(lowest: int) -> Any:
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


def _writable_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file in a directory that is there and can be written, got {text!r}")
    return path


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a mistake in it ends the program with status 2."""
    parser = _Parser("python -m clients.simulator", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is (default: %(default)s)")
    parser.add_argument("--env", required=True, help=f"which robot: {', '.join(DOMAINS)}")
    parser.add_argument("--task", required=True, help="; ".join(f"{name}: {domain.task_format}" for name, domain in DOMAINS.items()))
    parser.add_argument("--episodes", type=_whole_number(1), required=True, metavar="N", help="how many episodes to run")
    parser.add_argument("--conditioning", type=_whole_number(0), default=20, metavar="K", help="exploring episodes first (default: 20)")
    parser.add_argument("--seed", type=_whole_number(0), default=0, metavar="S", help="of the session and of the resets (default: 0)")
    parser.add_argument("--json", type=_writable_file, metavar="OUT.json", help="write every episode's figures here")
    parser.add_argument("--plot", type=_writable_file, metavar="OUT.png", help="draw paths before and after, and success per episode")
    parser.add_argument("--no-finetune", action="store_true", help="adapt by inferring the task only")
    parser.add_argument("--deterministic", action="store_true", help="take each skill's mean instead of drawing it")
    parser.add_argument("--bundle", help="which of the service's bundles (default: the first that was trained in this environment)")
    parser.add_argument("--session", metavar="ID", help="go on with a session, with its own seed and K, instead of opening one")
    parser.add_argument("--keep", action="store_true", help="leave the session open at the end")
    parser.add_argument("--max-wait-s", type=_seconds, default=60.0, metavar="S", help="longest wait for the learner (default: 60)")
    parser.add_argument("--no-wait", dest="max_wait_s", action="store_const", const=0.0, help="do not wait for the learner")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 (the run failed on its way), 2 (could not begin), 130 (interrupted)."""
    options = parse_arguments(arguments)
    try:
        domain = find_domain(options.env)
        if options.plot is not None and domain.plot is None:
            raise ValueError(f"there is no picture of runs in {domain.name}: leave out --plot")
        with closing(domain.make(options.task)) as env, SkilletClient(options.url) as client:
            session = open_session(client, options, env)
            try:
                return run(options, domain, env, session)
            finally:
                if not options.keep:
                    with suppress(SkilletError):  # what went wrong is told already; the session expires by itself
                        session.close()
    except (SkilletError, ValueError) as error:
        return complain(error, BAD_ARGUMENTS)
    except OSError as error:
        return complain(error, RUN_FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def complain(error: Exception, status: int) -> int:
    """Print an error as one line; returns ``status``."""
    print(f"python -m clients.simulator: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def open_session(client: SkilletClient, options: argparse.Namespace, env: gym.Env[Any, Any]) -> Session:
    """Open a session with a bundle that was trained in this environment, or go on with one. Raises ValueError when there is none."""
    env_id = env.spec.id if env.spec else ""
    if options.session is not None:
        session = client.session(options.session)
        if without_module(session.specs.env_id) != env_id:
            raise ValueError(f"session {session.id} is for {session.specs.env_id}, and --env {options.env} is {env_id}")
        return session
    trained_in = {bundle.name: bundle.env_id for bundle in client.bundles()}
    fitting = [name for name, trained in trained_in.items() if without_module(trained) == env_id and options.bundle in (None, name)]
    if not fitting and options.bundle not in trained_in:
        raise ValueError(f"no bundle of the service fits --env {options.env} ({env_id}); it serves {trained_in}")
    if not fitting:
        raise ValueError(f"bundle {options.bundle} was trained in {trained_in[options.bundle]}, and --env {options.env} is {env_id}")
    return client.open_session(
        fitting[0],
        seed=options.seed,
        conditioning_episodes=options.conditioning,
        finetuning=not options.no_finetune,
        deterministic=options.deterministic,
    )


def without_module(env_id: str) -> str:
    """A Gymnasium id without the module that registers it: ``module:namespace/Name-v0`` is ``namespace/Name-v0``."""
    return env_id.rpartition(":")[2]


def run(options: argparse.Namespace, domain: Domain, env: gym.Env[Any, Any], session: Session) -> int:
    """Run the episodes and report them, also when they end before their time. Returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    status, results = 0, list[EpisodeResult]()
    about = session.info()  # of a session that is gone on with, the seed and K are its own
    display = Display(console, options.episodes)
    simulation = Simulation(env, session, about.seed, display, keep_paths=options.plot is not None)
    try:
        with display:
            for result in simulation.episodes(options.episodes, max_wait_s=options.max_wait_s):
                results.append(result)
                display.episode_finished(result)
    except KeyboardInterrupt:
        status = INTERRUPTED
        console.print(f"interrupted after {len(results)} complete episodes", style="yellow")
    except SkilletError as error:
        status = complain(error, RUN_FAILED)
    if options.json is not None:
        write_json(options.json, env=options.env, task=options.task, seed=about.seed, results=results)
    if results:
        console.print(summary_table(results, about.conditioning_episodes))
        console.print(times_line(simulation.times), highlight=False)
        if options.plot is not None and domain.plot is not None:
            domain.plot(env, simulation.paths, [result.success for result in results], options.plot, about.conditioning_episodes)
    if options.keep:
        console.print(f"the session stays open: --session {session.id}", highlight=False)
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: files written, session closed
    sys.exit(main())
