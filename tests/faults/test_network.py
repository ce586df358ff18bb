"""Robots behind a link that delays, cuts and corrupts: nothing lost, nothing twice, not a bit changed."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.clients.chaos_proxy import ChaosProxy, Weather
from tests.faults.robots import Robot, identical, join, run_all, twins_of
from tests.service.running import RunningService
from training.contract.bundle import Bundle


def test_no_network_fault_loses_anything_or_changes_a_bit(
    tiny_bundle: Bundle, tmp_path: Path, network_faults: int, tally: Callable[[str], None]
) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service, ChaosProxy(("127.0.0.1", service.pool.port)) as proxy:
        robots = [Robot(proxy.url, seed, finetuning=False) for seed in range(3)]
        for robot in robots:
            robot.start()
        deadline = time.monotonic() + 300
        while any(not robot.actions for robot in robots):  # connected, and acting
            assert time.monotonic() < deadline
            time.sleep(0.01)
        weathers = [Weather(corrupt=0.1), Weather(cut=0.1), Weather(delay_s=0.02), Weather(refuse=True), Weather(corrupt=0.05, cut=0.05)]
        changing = threading.Event()
        while sum(vars(proxy.tally).values()) < network_faults:
            assert time.monotonic() < deadline
            for weather in weathers:
                proxy.weather = weather
                if weather.refuse:
                    proxy.cut_all()
                changing.wait(0.2)
        proxy.clear()
        for robot in robots:
            robot.stop.set()
        join(robots)
        twins = twins_of(robots, f"http://127.0.0.1:{service.pool.port}")
        run_all(twins)
        same = [identical(robot, twin) for robot, twin in zip(robots, twins, strict=True)]
    steps = sum(len(robot.actions) for robot in robots)
    tally(
        f"network: {proxy.tally}, {steps} steps acknowledged, sessions bit-identical to their undisturbed twins {sum(same)} of {len(same)}"
    )
    assert all(same)
