"""``kill -9`` of API process, learner and Redis, one by one and all at once, under load."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.robots import Robot, await_answer, identical, join, run_all, twins_of
from tests.faults.victims import KINDS, Victims, kill
from tests.service.running import RunningService
from tests.tiny_bundle import with_finetuning
from training.contract.bundle import Bundle

RECOVERY_S = 2.0
SMALL_SLICES = {"SKILLET_SLICE_UPDATES": "3", "SKILLET_CHECKPOINT_INTERVAL_S": "0", "SKILLET_LEASE_S": "2"}


@pytest.mark.timeout(900)
def test_no_kill_loses_anything_or_changes_a_bit(tiny_bundle: Bundle, tmp_path: Path, kills: int, tally: Callable[[str], None]) -> None:
    bundle = with_finetuning(tiny_bundle, tmp_path / "slow", warm_start_updates=40, updates_per_episode=20)
    chance, busy = random.Random(6), os.getloadavg()[0] > (os.cpu_count() or 1)  # by others: then two seconds say nothing of the service
    with RunningService(bundle.path, tmp_path / "data", **SMALL_SLICES) as service:
        url = f"http://127.0.0.1:{service.pool.port}"
        robots, probe = [Robot(url, seed, pause_s=0.005) for seed in range(2)], Robot(url, 9, pause_s=0.005, finetuning=False)
        for robot in (*robots, probe):
            robot.start()
        for robot in (*robots, probe):  # a client that never had an answer takes a lost connection for a wrong address
            await_answer([robot], 0.0)
        recovered_s, victims = [], Victims(service)
        for number in range(kills):
            kind = KINDS[number % len(KINDS)]
            pids = victims.await_all(kind)
            killed_at = time.monotonic()
            kill(pids)
            victims.died(kind)
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
    tally(
        f"kill -9: {kills} kills, {steps} steps acknowledged, next action within {RECOVERY_S:g} s {in_time} times, slowest "
        f"{max(recovered_s)}{', on a machine that was busy before' if busy else ''}, sessions bit-identical to their undisturbed twins "
        f"(nothing lost) {sum(same)} of {len(same)}"
    )
    assert all(same)
    if not busy:
        assert in_time == kills
