"""The proxy of compose.yaml with its own configuration: a real HAProxy on loopback before two services on one Redis."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
import yaml

from service.redis_server import EmbeddedRedis
from service.settings import read_settings
from tests.clients.servers import free_port
from tests.faults.robots import Robot, identical, join, run_all, twins_of
from tests.service.running import RunningService
from training.contract.bundle import Bundle

CONFIG = Path("deploy/haproxy.cfg")
needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy here (Debian: apt-get install haproxy)")


def on_loopback(port: int, servers: list[int]) -> str:
    """The configuration with its addresses changed, and the server's name in each reply."""
    lines = "\n".join(f"    server api{number} 127.0.0.1:{each} check" for number, each in enumerate(servers, 1))
    text, changed = re.subn(r"^    server-template api 2 .*$", lines, CONFIG.read_text(), flags=re.MULTILINE)
    assert changed == 2
    text, changed = re.subn(
        r"^    bind :8000$", f"    bind 127.0.0.1:{port}\n    http-response set-header x-server %s", text, flags=re.MULTILINE
    )
    assert changed == 1
    return re.sub(r"resolvers docker\n(    .*\n)+", "", text)


@contextmanager
def proxy(folder: Path, servers: list[int]) -> Iterator[int]:
    port, config = free_port(), folder / "haproxy.cfg"
    config.write_text(on_loopback(port, servers))
    subprocess.run(["haproxy", "-c", "-q", "-f", str(config)], check=True, timeout=60)
    process = subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while status(port) != 200:
            assert time.monotonic() < deadline, "the proxy finds no server"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def status(port: int) -> int:
    try:
        return urllib3.request("GET", f"http://127.0.0.1:{port}/readyz", retries=False, timeout=5).status
    except urllib3.exceptions.HTTPError:
        return 0


@needs_haproxy
def test_a_session_keeps_to_one_server_and_goes_on_elsewhere_when_that_dies(tiny_bundle: Bundle, tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path / "redis")
    server = redis.spawn()
    try:
        with (
            RunningService(tiny_bundle.path, tmp_path / "a", "--no-learner", SKILLET_REDIS_URL=redis.url) as one,
            RunningService(tiny_bundle.path, tmp_path / "b", "--no-learner", SKILLET_REDIS_URL=redis.url) as two,
            proxy(tmp_path, [one.pool.port or 0, two.pool.port or 0]) as port,
        ):
            url = f"http://127.0.0.1:{port}"
            robots = [Robot(url, seed, pause_s=0.005, finetuning=False) for seed in range(4)]
            for robot in robots:
                robot.start()
            while any(robot.session is None for robot in robots):
                time.sleep(0.02)
            served = {robot.seed: where(url, robot, asked=5) for robot in robots}
            assert all(len(names) == 1 for names in served.values())  # affine
            one.process.send_signal(signal.SIGTERM)
            assert one.process.wait(120) == 0
            seen = [len(robot.actions) for robot in robots]
            while any(len(robot.actions) < before + 20 for robot, before in zip(robots, seen, strict=True)):
                assert all(robot.failure is None for robot in robots), [robot.failure for robot in robots]
                time.sleep(0.02)
            assert {name for robot in robots for name in where(url, robot, asked=1)} == {"api2"}
            for robot in robots:
                robot.stop.set()
            join(robots)
            twins = twins_of(robots, f"http://127.0.0.1:{two.pool.port}")
            run_all(twins)
            assert all(identical(robot, twin) for robot, twin in zip(robots, twins, strict=True))
    finally:
        server.kill()
        server.wait()
        redis.close()


def where(url: str, robot: Robot, *, asked: int) -> set[str]:
    """Which servers answer for a robot's session."""
    assert robot.session is not None
    replies = [urllib3.request("GET", f"{url}/v1/sessions/{robot.session.id}", retries=False) for _ in range(asked)]
    return {reply.headers["x-server"] for reply in replies}


def test_the_composition_has_two_of_each_behind_the_proxy_and_a_redis_that_keeps_what_it_acknowledged() -> None:
    services = yaml.safe_load(Path("compose.yaml").read_text())["services"]
    assert {name: services[name]["deploy"]["replicas"] for name in ("api", "learner")} == {"api": 2, "learner": 2}
    assert "ports" not in services["api"]
    assert all(port.startswith("127.0.0.1:") for port in services["proxy"]["ports"])
    assert {"--appendonly", "yes", "noeviction"} <= set(services["redis"]["command"])
    assert f"./{CONFIG}:" in services["proxy"]["volumes"][0]
    bundles = [services[name]["environment"]["SKILLET_BUNDLES"] for name in ("api", "learner")]
    assert bundles == ['${SKILLET_BUNDLES:-["bundles/maze"]}'] * 2  # a learner refuses sessions of a bundle that it has not


def test_the_images_take_their_bundles_from_the_variable_since_an_argument_would_overrule_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dockerfile = Path("Dockerfile").read_text()
    (value,) = re.findall(r"SKILLET_BUNDLES='(.*)'$", dockerfile, re.MULTILINE)
    monkeypatch.setenv("SKILLET_BUNDLES", value)
    assert read_settings().bundles == (Path("bundles/maze"),)
    assert re.findall(r"^CMD .*$", dockerfile, re.MULTILINE) == ["CMD []"] * 2
