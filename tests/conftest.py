"""Fixtures for the whole suite: a tiny bundle, a real Redis, the API on both, and a driver of the step loop."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.policies import Networks
from service.processes import Supervised
from service.redis_server import EmbeddedRedis
from service.settings import Settings
from service.storage import connect
from tests.kept_bundle import kept_bundle
from training.contract.bundle import Bundle

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, SIGINT is ignored, and so it would be in every process that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", default=5, type=int, help="processes that the fault suite kills")
    parser.addoption("--soak", default=0.05, type=float, help="minutes for which everything goes wrong at once")
    parser.addoption("--fuzz", default=300, type=int, help="inputs that each decoder is given")
    parser.addoption("--network-faults", default=20, type=int, help="network faults that the fault suite makes")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Bundle:
    """A bundle of small untrained networks: S=4, A=2, Z=3, E=2, H=5."""
    return kept_bundle(pytestconfig, tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_networks(tiny_bundle: Bundle) -> Networks:
    return Networks(tiny_bundle)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis that lives as long as the suite."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    supervised = Supervised("redis", server.spawn)
    supervised.start()
    yield server.url
    supervised.stop()
    server.close()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """That Redis, emptied."""
    with connect(redis_server, 2.0) as client:
        client.flushdb()
    return redis_server


@pytest.fixture
def settings(redis_url: str, tiny_bundle: Bundle, tmp_path: Path) -> Settings:
    return Settings(redis_url=redis_url, bundles=(tiny_bundle.path,), data_dir=tmp_path / "data", inference_interval_s=0.0)


@pytest.fixture
def app(settings: Settings, tiny_networks: Networks) -> FastAPI:
    return create_app(settings, {"tiny": tiny_networks})


@pytest.fixture
def api(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


class Driver:
    """Drives one session over HTTP as a control loop does."""

    def __init__(self, api: TestClient, **options: Any) -> None:
        self.api = api
        self.session = self.ok(api.post("/v1/sessions", json={"seed": 7, **options}), 201)
        self.path = f"/v1/sessions/{self.session['session_id']}"

    @staticmethod
    def ok(response: Any, status: int = 200) -> Any:
        assert response.status_code == status, response.text
        return response.json()

    def get(self, path: str = "") -> Any:
        return self.ok(self.api.get(self.path + path))

    def start(self) -> Any:
        return self.ok(self.api.post(f"{self.path}/episodes"), 201)

    def post(self, path: str, **body: Any) -> Any:
        return self.api.post(f"{self.path}/{path}", json=body)

    def act(self, episode: int, step: int, observation: list[float]) -> Any:
        return self.ok(self.post("act", episode=episode, step=step, observation=observation))

    def step(self, episode: int, step: int, observation: list[float], **outcome: Any) -> Any:
        return self.ok(self.post("step", **transition(episode, step, observation, **outcome)))

    def run_episode(self, steps: int = 7, final_reward: float = 0.0) -> list[Any]:
        """One whole episode; its last step terminates. Returns the action replies."""
        episode = self.start()["episode"]
        replies = [self.act(episode, 0, state(episode, 0))]
        for step in range(steps):
            last = step == steps - 1
            outcome = {"reward": final_reward if last else 0.0, "terminated": last}
            replies.append(self.step(episode, step, state(episode, step + 1), **outcome))
        return replies


def state(episode: int, step: int) -> list[float]:
    """An observation that tells where it came from."""
    return [float(episode), step / 10, -step / 20, 0.25]


def transition(episode: int, step: int, observation: list[float], **outcome: Any) -> dict[str, Any]:
    """A transition as JSON."""
    body = {"episode": episode, "step": step, "next_observation": observation, "reward": 0.0, "terminated": False, "truncated": False}
    return {**body, **outcome}


@pytest.fixture
def driver(api: TestClient) -> Driver:
    return Driver(api)
