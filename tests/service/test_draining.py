"""SIGTERM to single processes of a running service, under load; and metrics that outlive the process that counted."""

import os
import re
import signal
import time
from pathlib import Path

from tests.faults.robots import Robot, join
from tests.faults.victims import find
from tests.service.running import RunningService, await_end
from training.contract.bundle import Bundle


def counted(service: RunningService, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", service.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found.group(1))


def test_a_stopping_api_process_hands_over_loses_nothing_and_its_counts_stay(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner", SKILLET_LOG_FORMAT="json") as service:
        robots = [Robot(f"http://127.0.0.1:{service.pool.port}", seed, pause_s=0.002, finetuning=False) for seed in range(3)]
        for robot in robots:
            robot.start()
        for _ in range(2):
            deadline = time.monotonic() + 60
            while not (serving := find(service, "api")) or not find(service, "standby") or any(not robot.actions for robot in robots):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(serving[0], signal.SIGTERM)
            await_end(serving)
        for robot in robots:
            robot.stop.set()
        join(robots)
        steps = sum(len(robot.actions) for robot in robots)
        replies = counted(service, 'skillet_call_seconds_count{call="step"}') + counted(service, 'skillet_call_seconds_count{call="act"}')
        assert replies >= steps  # all of the three processes' together
        assert counted(service, "skillet_transitions_total") == steps
        deadline = time.monotonic() + 60
        while service.log().count("ended with 0; it is started again") < 2:  # by themselves: nobody had to kill them
            assert time.monotonic() < deadline, service.log()
            time.sleep(0.02)
        log = service.log()
        assert service.stop(signal.SIGTERM) == 0
    assert "Traceback" not in log
