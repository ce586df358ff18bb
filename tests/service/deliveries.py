"""One episode of 13 steps, in skills of 5, whose transitions tests deliver in whatever order and state."""

from typing import Any

from fastapi.testclient import TestClient

from tests.conftest import Driver, state, transition
from training.contract.context import Floats

STEPS = 13


def reward_of(step: int) -> float:
    return step / 4  # sums of these are exact in float32, in any order


def outcome_of(step: int, *, with_reward: bool = True) -> dict[str, Any]:
    outcome = transition(0, step, state(0, step + 1), terminated=step == STEPS - 1)
    return {**outcome, "reward": reward_of(step) if with_reward else None}


def context_of(api: TestClient, driver: Driver) -> Floats:
    store = api.app.state.parts.store
    loaded = store.load(driver.session["session_id"])
    return store.context(loaded.keys, 0, loaded.session.rows, 13)


def acted(api: TestClient, steps: int = STEPS, **options: Any) -> Driver:
    driver = Driver(api, **options)
    driver.start()
    for step in range(steps):
        driver.act(0, step, state(0, step))
    return driver


def undisturbed(api: TestClient) -> Driver:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in range(STEPS)]))
    return driver


def statuses(posted: Any) -> list[str]:
    return [item["status"] for item in posted["results"]]


def late_reward(step: int) -> dict[str, Any]:
    return {"episode": 0, "step": step, "reward": reward_of(step)}
