"""Everything at once for some minutes: kills, a bad link, load and fine-tuning, with one tally. ``make soak``."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.chaos_proxy import ChaosProxy, Weather
from tests.faults.robots import Robot, await_answer, identical, join, run_all, twins_of
from tests.faults.victims import KINDS, Victims, kill
from tests.service.running import RunningService
from tests.tiny_bundle import with_finetuning
from training.contract.bundle import Bundle

RECOVERY_S = 2.0
SMALL_SLICES = {"SKILLET_SLICE_UPDATES": "3", "SKILLET_CHECKPOINT_INTERVAL_S": "0", "SKILLET_LEASE_S": "2"}
WEATHERS = (Weather(), Weather(corrupt=0.1), Weather(cut=0.1), Weather(delay_s=0.02), Weather(refuse=True), Weather(corrupt=0.05, cut=0.05))


@pytest.mark.timeout(4 * 3600)
def test_nothing_is_lost_while_everything_goes_wrong_at_once(
    tiny_bundle: Bundle, tmp_path: Path, pytestconfig: pytest.Config, tally: Callable[[str], None]
) -> None:
    seconds = 60 * float(pytestconfig.getoption("--soak"))
    bundle = with_finetuning(tiny_bundle, tmp_path / "slow", warm_start_updates=40, updates_per_episode=20)
    chance, busy = random.Random(7), os.getloadavg()[0] > (os.cpu_count() or 1)  # by others: then two seconds say nothing of the service
    with (
        RunningService(bundle.path, tmp_path / "data", **SMALL_SLICES) as service,
        ChaosProxy(("127.0.0.1", service.pool.port)) as proxy,
    ):
        url = f"http://127.0.0.1:{service.pool.port}"
        probe, learning = Robot(url, 9, pause_s=0.005, finetuning=False), [Robot(url, seed, pause_s=0.005) for seed in range(2)]
        far, load = [Robot(proxy.url, seed, pause_s=0.005, finetuning=False) for seed in (3, 4)], Robot(url, 5, finetuning=False)
        robots = [probe, *learning, *far, load]
        for robot in robots:
            robot.start()
        for robot in robots:  # a client that never had an answer takes a lost connection for a wrong address
            await_answer([robot], 0.0)
        kills, in_time, slowest_s, victims = Counter[str](), 0, 0.0, Victims(service)
        stop_at = time.monotonic() + seconds
        while time.monotonic() < stop_at or not kills:
            proxy.weather = chance.choice(WEATHERS)
            if proxy.weather.refuse:
                proxy.cut_all()
            kind = chance.choice(KINDS)
            pids = victims.await_all(kind)
            killed_at = time.monotonic()
            kill(pids)
            victims.died(kind)
            kills[kind] += 1
            took_s = await_answer([probe, *learning], killed_at) - killed_at
            in_time, slowest_s = in_time + (took_s < RECOVERY_S), max(slowest_s, took_s)
            time.sleep(chance.uniform(0, 0.5))
        proxy.clear()
        for robot in robots:
            robot.stop.set()
        join(robots, 240 + seconds)
        twins = twins_of(robots, url)
        run_all(twins, 240 + 4 * seconds)
        same = sum(identical(robot, twin) for robot, twin in zip(robots, twins, strict=True))
    acknowledged = sum(len(robot.actions) for robot in robots)
    where = ", on a machine that was busy before" if busy else ""
    tally(
        f"soak of {seconds:g} s: {kills.total()} kills {dict(kills)}, {sum(vars(proxy.tally).values())} network faults ({proxy.tally}), "
        f"{acknowledged} steps acknowledged, next action within {RECOVERY_S:g} s {in_time} times of {kills.total()}, slowest "
        f"{slowest_s:.2f} s{where}, sessions bit-identical to their undisturbed twins (nothing lost) {same} of {len(robots)}"
    )
    assert same == len(robots)
    if not busy:
        assert in_time == kills.total()
