"""``kill -9`` of API process, learner and Redis, one by one and all at once, under load."""

import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.robots import Robot, identical, join, run_all, twins_of
from tests.faults.victims import KINDS, find, kill
from tests.service.running import RunningService
from tests.tiny_bundle import with_finetuning
from training.contract.bundle import Bundle

RECOVERY_S = 2.0
SMALL_SLICES = {"SKILLET_SLICE_UPDATES": "3", "SKILLET_CHECKPOINT_INTERVAL_S": "0", "SKILLET_LEASE_S": "2"}


def await_all(service: RunningService, kind: str) -> list[int]:
    """Wait until the victims of a kind are there (again), and so is an API process that stands by: one death of a kind at a time."""
    deadline = time.monotonic() + 60
    wanted = 3 if kind == "all" else 1
    while len(found := find(service, kind)) < wanted or not find(service, "standby"):
        assert time.monotonic() < deadline, f"no {kind} to kill"
        time.sleep(0.02)
    return found


def test_no_kill_loses_anything_or_changes_a_bit(tiny_bundle: Bundle, tmp_path: Path, kills: int, tally: Callable[[str], None]) -> None:
    bundle = with_finetuning(tiny_bundle, tmp_path / "slow", warm_start_updates=40, updates_per_episode=20)
    chance = random.Random(6)
    with RunningService(bundle.path, tmp_path / "data", **SMALL_SLICES) as service:
        url = f"http://127.0.0.1:{service.pool.port}"
        robots, probe = [Robot(url, seed, pause_s=0.005) for seed in range(2)], Robot(url, 9, pause_s=0.005, finetuning=False)
        for robot in (*robots, probe):
            robot.start()
        for robot in (*robots, probe):  # a client that never had an answer takes a lost connection for a wrong address
            await_answer([robot], 0.0)
        recovered_s = []
        for number in range(kills):
            kind = KINDS[number % len(KINDS)]
            victims = await_all(service, kind)
            killed_at = time.monotonic()
            kill(victims)
            recovered_s.append((await_answer([probe, *robots], killed_at) - killed_at, kind))
            time.sleep(chance.uniform(0, 0.3))
        for robot in (*robots, probe):
            robot.stop.set()
        join([*robots, probe])
        twins = twins_of([*robots, probe], url)
        run_all(twins)
        same = [identical(robot, twin) for robot, twin in zip([*robots, probe], twins, strict=True)]
    in_time = sum(took < RECOVERY_S for took, _ in recovered_s)
    steps = sum(len(robot.actions) for robot in (*robots, probe))
    tally(f"kill -9: {kills} kills, {steps} steps acknowledged, next action within {RECOVERY_S:g} s {in_time} times, slowest "
          f"{max(recovered_s)}, sessions bit-identical to their undisturbed twins (nothing lost) {sum(same)} of {len(same)}")  # fmt: skip
    assert all(same)
    assert in_time == kills


def await_answer(robots: list[Robot], killed_at: float) -> float:
    """When the first robot, which only acts, first had an action that it asked for after the kill."""
    deadline = time.monotonic() + 60
    while (found := next((asked for asked in robots[0].answers[-200:] if asked[0] > killed_at), None)) is None:
        assert time.monotonic() < deadline, "no action any more"
        for robot in robots:
            if robot.failure is not None:
                raise robot.failure
        time.sleep(0.002)
    return found[1]
