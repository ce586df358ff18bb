"""A process remembers the sessions that it saved last; nobody else's change is ever lost by that."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.policies import Networks
from service.settings import Settings
from service.storage import connect
from tests.conftest import Driver, state


@pytest.fixture
def other_api(settings: Settings, tiny_networks: Networks) -> Iterator[TestClient]:
    """A second API process on the same Redis."""
    with TestClient(create_app(settings, {"tiny": tiny_networks})) as client:
        yield client


def second_driver(driver: Driver, other_api: TestClient) -> Driver:
    other = Driver(other_api)
    other.session, other.path = driver.session, driver.path
    return other


def test_a_control_step_reads_nothing_from_redis_and_writes_once(driver: Driver, redis_url: str) -> None:
    driver.start()
    driver.act(0, 0, state(0, 0))
    with connect(redis_url, 2.0) as redis:
        redis.config_resetstat()
        for step in range(4):  # within one skill
            driver.step(0, step, state(0, step + 1))
        calls = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in redis.info("commandstats").items()}
    assert calls.pop("evalsha") == 4
    assert calls.pop("hmget") == 4, "only the one inside the script that saves"
    assert calls.pop("hset") == 4
    assert calls.pop("rpush") == 4, "the log"
    watching_tokens = {"get", "client", "client|setinfo"}  # twice a second, in a thread of its own
    assert not set(calls) - watching_tokens - {"config|resetstat", "config", "info"}


def test_two_processes_that_take_turns_answer_as_one_would(driver: Driver, other_api: TestClient, api: TestClient) -> None:
    calm = Driver(api)
    told = [reply["action"] for reply in calm.run_episode(steps=12)]
    drivers = [driver, second_driver(driver, other_api)]
    driver.start()
    actions = [driver.act(0, 0, state(0, 0))["action"]]
    for step in range(12):
        reply = drivers[step % 2].step(0, step, state(0, step + 1), terminated=step == 11)
        actions.append(reply["action"])
        assert not reply["replayed"]
    assert actions == told


def test_a_step_that_went_to_another_process_is_known_here_when_it_is_sent_again(driver: Driver, other_api: TestClient) -> None:
    other = second_driver(driver, other_api)
    driver.start()
    driver.act(0, 0, state(0, 0))
    first = other.step(0, 0, state(0, 1))
    again = driver.step(0, 0, state(0, 1))
    assert again["replayed"]
    assert again["action"] == first["action"]


def test_a_session_that_was_closed_elsewhere_is_closed_here(driver: Driver, other_api: TestClient) -> None:
    driver.start()
    driver.act(0, 0, state(0, 0))
    other_api.delete(driver.path)
    refused = driver.post("step", **{**step_body(0), "episode": 0})
    assert (refused.status_code, refused.json()["code"]) == (410, "session_closed")
    repeated = driver.post("act", episode=0, step=0, observation=state(0, 0))
    assert (repeated.status_code, repeated.json()["code"]) == (410, "session_closed")


def test_an_episode_that_was_started_elsewhere_is_the_one_that_counts(driver: Driver, other_api: TestClient) -> None:
    driver.start()
    driver.act(0, 0, state(0, 0))
    assert second_driver(driver, other_api).start()["ended_previous"]["gaps"] == [0]
    refused = driver.post("step", **{**step_body(0), "episode": 0})
    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_episode")
    assert driver.act(1, 0, state(1, 0))["episode"] == 1


def step_body(step: int) -> dict[str, object]:
    return {"step": step, "next_observation": state(0, step + 1), "reward": 0.0, "terminated": False, "truncated": False}
