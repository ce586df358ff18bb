"""Back-pressure and draining, at the edge of one API process; under real load: tests/faults/test_overload.py."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.conftest import Driver, state


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_in_flight": 2})


def test_more_requests_than_the_limit_are_refused_without_effect_and_counted(app: FastAPI, api: TestClient, driver: Driver) -> None:
    app.state.in_flight = lambda: 3
    refused = api.post(f"{driver.path}/episodes", headers={"X-Request-Id": "mine"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["content-type"] == "application/problem+json"
    assert {name: refused.json()[name] for name in ("code", "request_id")} == {"code": "overloaded", "request_id": "mine"}
    app.state.in_flight = lambda: 2
    assert driver.get()["episode"] is None
    assert 'skillet_errors_total{code="overloaded"} 1.0' in api.get("/metrics").text


def test_requests_that_only_wait_do_not_count(app: FastAPI, api: TestClient, driver: Driver) -> None:
    app.state.in_flight = lambda: 3
    with app.state.parts.waiting:
        assert api.get(driver.path).status_code == 200
    assert api.get(driver.path).status_code == 503


def test_a_client_that_waits_for_a_learner_is_counted_as_waiting(app: FastAPI, api: TestClient) -> None:
    driver = Driver(api, conditioning_episodes=1)
    driver.run_episode(final_reward=1.0)
    seen = []
    load = app.state.parts.store.load

    def note(session_id: str):
        seen.append(app.state.parts.waiting.count)
        return load(session_id)

    app.state.parts.store.load = note
    driver.get("/finetuning?wait_s=0.1")
    assert seen  # each look is work
    assert set(seen) == {0}
    assert app.state.parts.waiting.count == 0


@pytest.mark.parametrize("path", ["/livez", "/metrics"])
def test_whether_it_lives_is_told_however_great_the_load(app: FastAPI, api: TestClient, path: str) -> None:
    app.state.in_flight = lambda: 1000
    app.state.stopping = True
    assert api.get(path).status_code == 200


def test_a_busy_process_stays_ready(app: FastAPI, api: TestClient) -> None:
    app.state.in_flight = lambda: 1000
    assert api.get("/readyz").status_code == 200


def test_a_process_that_stops_is_not_ready_and_sends_clients_elsewhere(app: FastAPI, api: TestClient, driver: Driver) -> None:
    driver.start()
    app.state.stopping = True
    for refused in (api.get("/readyz"), driver.post("act", episode=0, step=0, observation=state(0, 0))):
        assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
    app.state.stopping = False
    assert driver.get()["step"] == 0
