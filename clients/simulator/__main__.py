"""``python -m clients.simulator``: run a simulated robot against the service and say how it went."""

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

import gymnasium as gym
from rich.console import Console

from clients.sdk import ConnectionFailed, ServiceError, Session, SessionGroup, SkilletClient, SkilletError, UnexpectedReply
from clients.sdk.errors import ServiceFailed, TooMany
from clients.simulator.arguments import BAD_ARGUMENTS, parse_arguments
from clients.simulator.fleet import Fleet
from clients.simulator.pictures import check_episodes, check_video, leave_pictures
from clients.simulator.report import Display, EpisodeResult, summary_table, times_line, write_fleet_json, write_json
from clients.simulator.run import Simulation
from clients.simulator.tasks import Domain, FinishedRun, find_domain

RUN_FAILED, INTERRUPTED = 1, 130
PLAIN_WIDTH = 140  # columns where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 (the run failed on its way), 2 (could not begin), 130 (interrupted)."""
    options = parse_arguments(arguments)
    try:
        domain = find_domain(options.env)
        if options.plot is not None and domain.plot is None:
            raise ValueError(f"there is no picture of runs in {domain.name}: leave out --plot")
        if options.num_envs > 1:
            with connect(options) as client:
                return run_fleet(options, domain, client)
        with closing(domain.make(options.task)) as env, connect(options) as client:
            if options.video is not None:
                check_video(env)
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


def connect(options: argparse.Namespace) -> SkilletClient:
    """A client of the service that the command line names."""
    return SkilletClient(options.url, token=options.token, ca_file=options.ca_file)


def open_session(client: SkilletClient, options: argparse.Namespace, env: gym.Env[Any, Any]) -> Session:
    """Open a session with a bundle that was trained in this environment, or go on with one.

    Raises:
        ValueError: there is none, or it would not run the episodes that the video is to show.
    """
    env_id = env.spec.id if env.spec else ""
    if options.session is not None:
        session = client.session(options.session)
        if without_module(session.specs.env_id) != env_id:
            raise ValueError(f"session {session.id} is for {session.specs.env_id}, and --env {options.env} is {env_id}")
        first = 0 if session.episode is None else session.episode + 1
        check_episodes(options.video_episodes, range(first, first + options.episodes))
        return session
    check_episodes(options.video_episodes, range(options.episodes))
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
    subtasks = domain.subtasks(options.task)
    display = Display(console, options.episodes, len(subtasks))
    simulation = Simulation(env, session, about.seed, display, keep_paths=options.plot is not None or options.video is not None)
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
        write_json(options.json, env=options.env, task=options.task, about=about, results=results)
    if results:
        console.print(summary_table(results, about.conditioning_episodes, subtasks))
        console.print(times_line(simulation.times), highlight=False)
        finished = FinishedRun(env, simulation.paths, results, about.conditioning_episodes, subtasks)
        video = options.video if status == 0 else None  # drawing it takes half a minute, and who interrupts wants to go
        leave_pictures(finished, domain, console, plot=options.plot, video=video, choice=options.video_episodes)
    if options.keep:
        console.print(f"the session stays open: --session {session.id}", highlight=False)
    return status


def run_fleet(options: argparse.Namespace, domain: Domain, client: SkilletClient) -> int:
    """Run the episodes of several robots side by side, as `run` does those of one."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    status, subtasks = 0, domain.subtasks(options.task)
    seeds = range(options.seed, options.seed + options.num_envs)
    results: list[list[EpisodeResult]] = [[] for _ in seeds]
    with ExitStack() as stack:
        envs = [stack.enter_context(closing(domain.make(options.task))) for _ in seeds]
        sessions = list[Session]()
        stack.callback(close_all, sessions)
        for seed, env in zip(seeds, envs, strict=True):
            sessions.append(open_session(client, argparse.Namespace(**{**vars(options), "seed": seed}), env))
        infos = [session.info() for session in sessions]
        display = Display(console, options.episodes * len(seeds), len(subtasks))
        fleet = Fleet(envs, SessionGroup(client, sessions), seeds, display)
        try:
            with display:
                for finished in fleet.rounds(options.episodes, max_wait_s=options.max_wait_s):
                    for robot, result in zip(results, finished, strict=True):
                        robot.append(result)
                        display.episode_finished(result)
        except KeyboardInterrupt:
            status = INTERRUPTED
            console.print(f"interrupted after {len(results[0])} complete episodes of each", style="yellow")
        except SkilletError as error:
            status = complain(error, RUN_FAILED)
        if options.json is not None:
            write_fleet_json(options.json, env=options.env, task=options.task, runs=list(zip(infos, results, strict=True)))
        if results[0]:
            every = sorted((result for robot in results for result in robot), key=lambda result: result.index)
            console.print(summary_table(every, infos[0].conditioning_episodes, subtasks))
            console.print(times_line(fleet.times), highlight=False)
    return status


def close_all(sessions: Sequence[Session]) -> None:
    """Close sessions. What went wrong is told already, and sessions expire by themselves.

    The client has sent the first of them again until it gave up: a service that is gone is not waited for with each of the others.
    """
    for session in sessions:
        try:
            session.close()
        except (ConnectionFailed, ServiceFailed, TooMany, UnexpectedReply):
            return
        except ServiceError:
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: files written, session closed
    sys.exit(main())
