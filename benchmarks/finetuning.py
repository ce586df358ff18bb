"""What a learner beside it does to a control step: ``python -m benchmarks.finetuning [--seconds N] [--json FILE]``.

One API process, one that stands by, Redis and one learner, as ``python -m service`` starts them. A few sessions have episodes to learn
from, more than the learner gets done; one other session steps over one connection (wrk). Fine-tuning is paused and resumed in turn, so that
idle and busy see the same machine; figures are medians over the rounds, and the slowest step of all. The gradient steps made meanwhile say
whether the learner was busy: on a machine that gives it no time the figures mean nothing.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import urllib3

from benchmarks.http_load import Load, Walk, drive
from benchmarks.skillet_service import SkilletService, act_body, observation_of, step_body

LEARNING, EPISODES, STEPS = 4, 10, 100


@dataclass(frozen=True)
class Figures:
    """Of the rounds with fine-tuning paused (``busy`` False) or running."""

    busy: bool
    p50_ms: float
    p99_ms: float
    slowest_ms: float
    updates: int


def ready_to_learn(service: SkilletService, observation: list[float]) -> str:
    """The path of a session with rewarded episodes that no learner has seen: it is paused."""
    path = service.open_session(conditioning_episodes=1)
    _pause(service, path, paused=True)
    outcome = {"next_observation": observation, "terminated": False}
    for episode in range(EPISODES):
        if episode:
            service.post(f"{path}/episodes", {})
        for step in range(STEPS):
            service.post(f"{path}/act", {"episode": episode, "step": step, "observation": observation})
        ends = [{**outcome, "episode": episode, "step": step, "reward": 1.0, "truncated": step == STEPS - 1} for step in range(STEPS)]
        service.post(f"{path}/transitions", {"transitions": ends})
    return path


def _pause(service: SkilletService, path: str, *, paused: bool) -> None:
    reply = urllib3.request("PATCH", f"http://127.0.0.1:{service.port}{path}/finetuning", json={"paused": paused})
    if reply.status != 200:
        raise RuntimeError(reply.data.decode())


def measure(bundle: Path, seconds: int, rounds: int) -> list[Figures]:
    """Step with fine-tuning paused and running, in turn."""
    observation = observation_of(bundle)
    with ExitStack() as stack:
        service = SkilletService(bundle, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="busy-"))), stack, learners=1)
        learning = [ready_to_learn(service, observation) for _ in range(LEARNING)]
        stepping = service.open_session()
        service.post(f"{stepping}/act", json.loads(act_body(observation) % 0))

        def run(length: int) -> Load:
            walk = Walk(f"{stepping}/step", service.get(stepping)["step"] - 1)
            return drive(service.port, [walk], step_body(observation), connections=1, seconds=length)

        def updates() -> int:
            return sum(service.get(f"{path}/finetuning")["updates"] for path in learning)

        run(1)
        loads: dict[bool, list[tuple[Load, int]]] = {False: [], True: []}
        for busy in (False, True) * rounds:
            for path in learning:
                _pause(service, path, paused=not busy)
            before = updates()
            loads[busy].append((run(seconds), updates() - before))
    return [_summary(busy, loads[busy]) for busy in (False, True)]


def _summary(busy: bool, loads: Sequence[tuple[Load, int]]) -> Figures:
    return Figures(
        busy,
        statistics.median(load.p50_ms for load, _ in loads),
        statistics.median(load.p99_ms for load, _ in loads),
        max(load.largest_ms for load, _ in loads),
        sum(updates for _, updates in loads),
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.finetuning", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"), help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="of one round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures = measure(options.bundle, options.seconds, options.rounds)
    print("| learner | p50 ms | p99 ms | slowest ms | gradient steps |\n|---|---|---|---|---|")
    for each in figures:
        name = "busy" if each.busy else "paused"
        print(f"| {name} | {each.p50_ms:.3f} | {each.p99_ms:.3f} | {each.slowest_ms:.1f} | {each.updates} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
