"""Power loss: only what was synchronised to the disk is left, which kill -9 does not show. A preloaded library keeps account of it."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.redis_server import EmbeddedRedis
from tests.conftest import Driver
from tests.faults.victims import find, kill
from tests.service.running import Remote, RunningService, fails_to_start
from training.contract.bundle import Bundle

EPISODES, STEPS = 12, 7


@pytest.fixture(scope="module")
def durable_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the library that stands for the disk")
    library = tmp_path_factory.mktemp("disk") / "durable_disk.so"
    source = Path(__file__).with_name("durable_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def left_by_power_loss(bundle: Path, folder: Path, disk: Path, *, wait_s: float = 0.0, **environment: str) -> tuple[int, int]:
    """Episodes that were acknowledged, and those that are there after the power came back."""
    before, after = folder / "before", folder / "after"
    after.mkdir(parents=True)
    preload = {"LD_PRELOAD": str(disk), "DURABLE_FROM": f"{before}/", "DURABLE_TO": str(after), **environment}
    with RunningService(bundle, before, "--no-learner", **preload) as service:
        driver = Driver(Remote(service), conditioning_episodes=50)  # type: ignore[arg-type]
        for _ in range(EPISODES):
            driver.run_episode(steps=STEPS)
        acknowledged = driver.get()["episodes_completed"]
        time.sleep(wait_s)
        kill([service.process.pid, *find(service, "all")])  # at once: nothing is synchronised on the way out
    with RunningService(bundle, after, "--no-learner") as service:
        reply = service.get(driver.path)
        assert reply.status_code in (200, 404), reply.text  # 404: the session itself is lost
        return acknowledged, reply.json()["episodes_completed"] if reply.status_code == 200 else 0


def test_strict_durability_loses_nothing_that_was_acknowledged(
    tiny_bundle: Bundle, tmp_path: Path, durable_disk: Path, tally: Callable[[str], None]
) -> None:
    acknowledged, left = left_by_power_loss(tiny_bundle.path, tmp_path, durable_disk, SKILLET_DURABILITY="strict")
    tally(f"power loss, strict: {acknowledged} episodes acknowledged, {left} left")
    assert acknowledged == left == EPISODES


def test_the_default_has_everything_on_disk_that_is_older_than_two_seconds(tiny_bundle: Bundle, tmp_path: Path, durable_disk: Path) -> None:
    acknowledged, left = left_by_power_loss(tiny_bundle.path, tmp_path, durable_disk, wait_s=2.0)
    assert acknowledged == left == EPISODES


def test_strict_durability_refuses_a_redis_that_does_not_give_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    process = server.spawn()
    try:
        line = fails_to_start(tiny_bundle.path, tmp_path / "data", SKILLET_REDIS_URL=server.url, SKILLET_DURABILITY="strict")
    finally:
        process.kill()
        process.wait()
        server.close()
    assert "strict" in line
    assert "everysec" in line
