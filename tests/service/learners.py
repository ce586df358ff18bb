"""Workers in this process, for tests that want to see each step."""

import numpy as np
from fastapi.testclient import TestClient

from service.policies import Networks
from service.settings import Settings
from service.storage import connect
from service.worker import Worker
from tests.conftest import Driver
from training.contract.context import Floats


def worker(settings: Settings, networks: Networks, name: str = "test-0") -> Worker:
    """A worker that has joined the queue."""
    assert settings.redis_url is not None
    made = Worker(settings, name, connect(settings.redis_url, 2.0), {"tiny": networks})
    made.open()
    return made


def work_off(made: Worker) -> int:
    """Let the worker do everything that there is. Returns the number of slices."""
    slices = 0
    while made.turn(1):
        slices += 1
        assert slices < 1000
    return slices


def ready_to_learn(api: TestClient, **options: object) -> Driver:
    """A session whose one conditioning episode brought a reward."""
    driver = Driver(api, conditioning_episodes=1, **options)
    driver.run_episode(final_reward=1.0)
    return driver


def stored_weights(api: TestClient, driver: Driver, version: int) -> dict[str, Floats]:
    parts = api.app.state.parts
    loaded = parts.store.load(driver.session["session_id"])
    weights = parts.versions.weights(loaded.keys, version)
    assert weights is not None
    return weights.arrays()


def same(one: dict[str, Floats], two: dict[str, Floats]) -> bool:
    """Bit for bit."""
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
