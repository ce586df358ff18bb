"""Redis goes away and comes back: requests fail at once and clearly, and go on where they were."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.keys import COUNTERS
from service.open_redis import redis_of
from service.policies import Networks
from service.redis_server import EmbeddedRedis
from service.settings import Settings
from service.storage import pool_of
from tests.conftest import Driver, state, transition


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_redis_requests_fail_at_once_and_go_on_when_it_is_back(tiny_networks: Networks, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    process = server.spawn()
    try:
        with TestClient(create_app(Settings(redis_url=server.url), {"tiny": tiny_networks})) as api:
            driver = Driver(api, conditioning_episodes=1)
            driver.start()
            driver.act(0, 0, state(0, 0))
            process.terminate()
            process.wait(10)
            began = time.monotonic()
            for response in (
                driver.post("step", **transition(0, 0, state(0, 1))),
                driver.post("episodes"),
                api.get(driver.path + "/task"),
                api.get("/readyz"),
                api.post("/v1/sessions"),
            ):
                assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
                assert response.headers["retry-after"] == "1"
            assert time.monotonic() - began < 5
            assert api.get("/livez").status_code == 200
            assert api.get("/metrics").status_code == 200
            process = server.spawn()
            assert api.get("/readyz").status_code == 200
            assert driver.step(0, 0, state(0, 1))["replayed"] is False
            assert driver.get()["step"] == 2
    finally:
        process.terminate()
        process.wait(10)
        server.close()


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(("CONFIG", "SET", "maxmemory", "1"), "OOM"), (("REPLICAOF", "127.0.0.1", "1"), "READONLY"), (None, "MISCONF")],
)
def test_a_redis_that_takes_no_writes_is_an_outage_that_passes(
    tiny_networks: Networks, tmp_path: Path, trouble: tuple[str, ...] | None, code: str
) -> None:
    server = EmbeddedRedis(tmp_path)
    process = server.spawn()
    try:
        with TestClient(create_app(Settings(redis_url=server.url), {"tiny": tiny_networks})) as api:
            driver, redis = Driver(api, conditioning_episodes=1), api.app.state.parts.store.redis
            driver.start()
            driver.act(0, 0, state(0, 0))
            if trouble is None:  # a snapshot that cannot be written, as on a full disk
                (tmp_path / "temp").mkdir()
                redis.config_set("dir", str(tmp_path / "temp"))
                redis.config_set("save", "3600 1")
                (tmp_path / "temp").rmdir()
                redis.bgsave()
                wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
            else:
                redis.execute_command(*trouble)
            for response in (
                driver.post("step", **transition(0, 0, state(0, 1))),
                driver.post("episodes"),
                api.post("/v1/sessions"),
                api.patch(driver.path, json={"phase": "exploring"}),
                api.get("/readyz"),
                api.get("/v2/health/ready"),
            ):
                assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable"), response.text
                assert response.json()["detail"] == f"Redis takes nothing at the moment: {code}"
                assert response.headers["retry-after"] == "1"
            if trouble is None:
                redis.config_set("stop-writes-on-bgsave-error", "no")
                redis.config_set("save", "")  # or it would not stop without saving
            redis.config_set("maxmemory", "0")
            redis.replicaof("NO", "ONE")
            assert api.get("/readyz").status_code == 200
            assert driver.step(0, 0, state(0, 1))["replayed"] is False
    finally:
        process.terminate()
        process.wait(10)
        server.close()


def test_while_redis_hangs_requests_do_not_wait_for_it_one_after_the_other(tiny_networks: Networks, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    process = server.spawn()
    try:
        with TestClient(create_app(Settings(redis_url=server.url, redis_timeout_s=1.0), {"tiny": tiny_networks})) as api:
            driver, pool = Driver(api, conditioning_episodes=1), pool_of(api.app.state.parts.store.redis)
            driver.start()
            driver.act(0, 0, state(0, 0))
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: pool.hangs)
            began = time.monotonic()
            for _ in range(20):
                response = driver.post("step", **transition(0, 0, state(0, 1)))
                assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
            assert api.get("/livez").status_code == 200
            assert time.monotonic() - began < 10  # one after the other they would wait for twenty seconds
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: not pool.hangs)
            assert driver.step(0, 0, state(0, 1))["step"] == 1
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)
        server.close()


def test_totals_that_are_in_redis_have_no_value_while_it_is_away_rather_than_0(tiny_networks: Networks, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    process = server.spawn()
    try:
        with TestClient(create_app(Settings(redis_url=server.url), {"tiny": tiny_networks})) as api:

            def read() -> list[str]:
                """Samples of what is in Redis."""
                answer = api.get("/metrics")
                assert answer.status_code == 200
                return [line for line in answer.text.splitlines() if re.match("skillet_(versions|learner|jobs|sessions|reaper)", line)]

            api.app.state.parts.store.redis.hset(COUNTERS, mapping={"versions_published": 7, "updates": 1000})
            assert {'skillet_versions_total{result="published"} 7.0', "skillet_learner_updates_total 1000.0"} <= set(read())
            process.terminate()
            process.wait(10)
            assert [line for line in read() if not line.startswith("skillet_sessions_opened_")] == []
    finally:
        process.terminate()
        process.wait(10)
        server.close()


def test_a_redis_that_hangs_makes_a_request_fail_in_bounded_time(tiny_networks: Networks, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    process = server.spawn()
    try:
        with TestClient(create_app(Settings(redis_url=server.url, redis_timeout_s=0.3), {"tiny": tiny_networks})) as api:
            driver = Driver(api)
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            assert driver.post("episodes").status_code == 503
            assert time.monotonic() - began < 3
            process.send_signal(signal.SIGCONT)
            assert driver.start()["episode"] == 0
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)
        server.close()


def test_a_command_finds_the_redis_of_a_service_whose_data_are_at_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    server = EmbeddedRedis(folder)
    process = server.spawn()
    try:
        with redis_of(Settings(data_dir=folder)) as redis:
            assert redis.info("server")["process_id"] == process.pid
    finally:
        process.terminate()
        process.wait()
        server.close()
    with redis_of(Settings(data_dir=folder)) as redis:  # and starts one where that has ended
        assert redis.info("server")["process_id"] != process.pid
