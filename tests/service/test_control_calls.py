"""The control loop's calls skip FastAPI's routing, and nothing else."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from service.app import create_app
from service.policies import Networks
from service.settings import Settings
from service.step_loop import StepLoop
from tests.conftest import Driver, state


def test_middleware_that_is_added_is_around_a_control_call(app: FastAPI) -> None:
    @app.middleware("http")
    async def closed(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return Response(status_code=418) if request.url.path.endswith("/act") else await call_next(request)

    with TestClient(app) as api:
        driver = Driver(api)
        driver.start()
        assert driver.post("act", episode=0, step=0, observation=state(0, 0)).status_code == 418


def test_a_failure_nobody_thought_of_is_a_problem_and_is_raised_for_the_log(
    settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(StepLoop, "act", breaks)
    with TestClient(create_app(settings, {"tiny": tiny_networks}), raise_server_exceptions=False) as api:
        driver = Driver(api)
        reply = driver.post("act", episode=0, step=0, observation=state(0, 0))
        assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["x-request-id"] == reply.json()["request_id"]
    with TestClient(create_app(settings, {"tiny": tiny_networks})) as api, pytest.raises(ZeroDivisionError):
        Driver(api).post("act", episode=0, step=0, observation=state(0, 0))


@pytest.mark.parametrize("path", ["act", "step", "transitions", "rewards"])
def test_other_methods_and_paths_are_answered_by_the_application(driver: Driver, path: str) -> None:
    assert driver.api.get(f"{driver.path}/{path}").json()["code"] == "method_not_allowed"
    assert driver.api.post(f"{driver.path}/{path}/x").json()["code"] == "not_found"
    assert f"/v1/sessions/{{session_id}}/{path}" in driver.api.get("/openapi.json").json()["paths"]
