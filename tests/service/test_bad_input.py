"""Bad input: each kind gets a problem document that says what is wrong, and has no effect."""

import json
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from service import frames
from service.errors import InvalidRequest
from service.schemas import OpenSession
from service.sessions import SessionStore
from tests.conftest import Driver, state, transition
from training.contract.exploration import Exploration


@pytest.fixture
def mid(api: TestClient) -> Driver:
    """A session in the middle of episode 0: steps 0 to 2 acted, transitions 0 and 1 stored."""
    driver = Driver(api)
    driver.start()
    driver.act(0, 0, state(0, 0))
    driver.step(0, 0, state(0, 1))
    driver.step(0, 1, state(0, 2))
    return driver


def stored(driver: Driver) -> dict[str, Any]:
    """Everything that Redis holds of the session."""
    store: SessionStore = driver.api.app.state.parts.store
    loaded = store.load(driver.session["session_id"])
    return {
        "raw": loaded.raw,
        "current": loaded.current_version,
        "rows": store.redis.strlen(loaded.keys.context),
        "episodes": store.redis.llen(loaded.keys.episodes),
        "jobs": store.redis.xlen("skillet:jobs"),
    }


def refused(driver: Driver, path: str, body: Any, *, status: int, code: str) -> dict[str, Any]:
    """Send, check the problem, and check that nothing changed. Returns the problem."""
    before = stored(driver)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = driver.api.post(f"{driver.path}/{path}", content=content)
    problem = response.json()
    assert (response.status_code, problem["code"], problem["status"]) == (status, code, status), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code", "expected", "received", "action", "request_id"}
    assert problem["detail"]
    assert problem["request_id"]
    assert stored(driver) == before
    return problem


@pytest.mark.parametrize("length", [0, 3, 5, 1000])
def test_a_wrong_observation_length_names_what_was_expected(mid: Driver, length: int) -> None:
    for path, body in (
        ("act", {"episode": 0, "step": 3, "observation": [0.0] * length}),
        ("step", transition(0, 2, [0.0] * length)),
        ("transitions", {"transitions": [transition(0, 2, [0.0] * length)]}),
    ):
        problem = refused(mid, path, body, status=422, code="invalid_observation")
        assert problem["expected"]["names"] == ["x", "y", "vx", "vy"]
        assert problem["received"] == {"length": length}


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e39", '"1"', "true", "null", "[1]", "{}"])
def test_an_observation_that_is_no_finite_number_is_refused(mid: Driver, token: str) -> None:
    act = f'{{"episode": 0, "step": 3, "observation": [0, 1, {token}, 3]}}'.encode()
    refused(mid, "act", act, status=422, code="invalid_observation")
    step = json.dumps(transition(0, 2, [0, 1, 2, 3])).replace("[0, 1, 2, 3]", f"[0, 1, {token}, 3]").encode()
    refused(mid, "step", step, status=422, code="invalid_observation")
    batch = b'{"transitions": [' + step + b"]}"
    refused(mid, "transitions", batch, status=422, code="invalid_observation")


@pytest.mark.parametrize("observation", [None, "0,0,0,0", 1.0, {"x": 0}])
def test_an_observation_that_is_no_list_is_refused(mid: Driver, observation: Any) -> None:
    problem = refused(mid, "act", {"episode": 0, "step": 3, "observation": observation}, status=422, code="invalid_observation")
    assert "$.observation" in problem["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward", "1"),
        ("reward", True),
        ("reward", 1e31),
        ("step", -1),
        ("step", 1.5),
        ("step", 2**70),
        ("episode", "0"),
        ("terminated", 0),
        ("truncated", None),
        ("terminate", True),
    ],
)
def test_a_wrong_field_is_named(mid: Driver, field: str, value: Any) -> None:
    problem = refused(mid, "step", {**transition(0, 2, state(0, 3)), field: value}, status=422, code="invalid_request")
    assert field in problem["detail"]


@pytest.mark.parametrize(
    ("body", "detail", "expected", "received"),
    [
        ({"exploration": "fast"}, "$.exploration: Invalid enum value 'fast'", [*Exploration, None], "'fast'"),
        ({"promotion": "never"}, "$.promotion: Invalid enum value 'never'", ["automatic", "manual"], "'never'"),
        ({"sede": 7}, "$: Object contains unknown field `sede`", list(OpenSession.__struct_fields__), "sede"),
        ({"seed": -1}, "$.seed: Expected `int` >= 0", "`int` >= 0", None),
        ({"seed": "7"}, "$.seed: Expected `int`, got `str`", "`int`", "`str`"),
    ],
)
def test_what_would_have_been_right_is_told(api: TestClient, body: Any, detail: str, expected: Any, received: str | None) -> None:
    problem = api.post("/v1/sessions", json=body).json()
    assert (problem["detail"], problem["expected"], problem["received"]) == (detail, expected, received)


def test_a_missing_field_is_named_with_its_path(mid: Driver) -> None:
    item = {key: value for key, value in transition(0, 2, state(0, 3)).items() if key != "step"}
    problem = refused(mid, "transitions", {"transitions": [item]}, status=422, code="invalid_request")
    path = "$.transitions[0].step"
    assert (problem["detail"], problem["expected"]) == (f"{path}: the field is missing", "the field step")
    assert path in problem["action"]


def test_a_frame_is_told_what_would_have_been_right_too() -> None:
    def expected(frame: Any) -> Any:
        with pytest.raises(InvalidRequest) as caught:
            frames.decode(msgspec.msgpack.encode(frame))
        return caught.value.expected

    assert expected({"type": "open", "body": {"exploration": "fast"}}) == [*Exploration, None]
    assert expected({"type": "act", "body": {"episode": 0, "step": 0}}) == "the field observation"
    assert expected({"type": "act", "body": {"state": []}}) == ["episode", "step", "observation"]
    assert {"open", "attach", "step"} < set(expected({"type": "opened"}))


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_a_reward_that_is_not_finite_is_refused(mid: Driver, token: str) -> None:
    body = json.dumps(transition(0, 2, state(0, 3))).replace('"reward": 0.0', f'"reward": {token}').encode()
    problem = refused(mid, "step", body, status=422, code="invalid_observation")
    assert token in problem["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"act"', b"[" * 100_000])
def test_a_body_that_is_no_such_object_is_refused(mid: Driver, body: bytes) -> None:
    refused(mid, "act", body, status=422, code="invalid_request")


def test_a_missing_field_is_named(mid: Driver) -> None:
    problem = refused(mid, "act", {"episode": 0, "step": 3}, status=422, code="invalid_request")
    assert "observation" in problem["detail"]


def test_an_empty_or_huge_batch_is_refused(mid: Driver) -> None:
    refused(mid, "transitions", {"transitions": []}, status=422, code="invalid_request")
    batch = [transition(0, 2, [0, 0, 0, 0])] * 1001
    refused(mid, "transitions", {"transitions": batch}, status=422, code="invalid_request")


@pytest.mark.parametrize("session_id", ["0" * 32, "nope", "%2E%2E", "0" * 5000, "{x}", "%00", "é"])
def test_an_unknown_session_is_404(api: TestClient, session_id: str) -> None:
    for response in (
        api.get(f"/v1/sessions/{session_id}/task"),
        api.post(f"/v1/sessions/{session_id}/episodes"),
        api.post(f"/v1/sessions/{session_id}/act", json={"episode": 0, "step": 0, "observation": state(0, 0)}),
    ):
        assert response.status_code == 404
        assert response.json()["code"] in ("unknown_session", "not_found")
    assert api.get("/v1/sessions").json()["sessions"] == []


def test_a_closed_session_is_410(mid: Driver) -> None:
    mid.ok(mid.api.delete(mid.path))
    calls = [
        mid.post("act", episode=0, step=3, observation=state(0, 3)),
        mid.post("step", **transition(0, 2, state(0, 3))),
        mid.post("transitions", transitions=[transition(0, 2, state(0, 3))]),
        mid.post("episodes"),
        mid.post("policy/rollback"),
        *(mid.api.get(mid.path + path) for path in ("", "/task", "/policy", "/finetuning")),
        mid.api.patch(mid.path, json={"phase": None}),
        mid.api.patch(f"{mid.path}/finetuning", json={"paused": True}),
        mid.api.delete(mid.path),
    ]
    assert [(call.status_code, call.json()["code"]) for call in calls] == [(410, "session_closed")] * len(calls)
    assert mid.api.app.state.parts.store.redis.keys(f"*{mid.session['session_id']}*") == [
        f"skillet:{{{mid.session['session_id']}}}:known".encode()
    ]


def test_a_transition_of_a_step_never_acted_is_refused(mid: Driver) -> None:
    for step in (3, 4, 100):
        problem = refused(mid, "step", transition(0, step, state(0, step + 1)), status=409, code="step_not_acted")
        assert problem["received"] == step


def test_a_transition_further_ahead_than_the_window_is_refused(settings, tiny_networks) -> None:
    from service.app import create_app

    with TestClient(create_app(settings.model_copy(update={"reorder_window": 3}), {"tiny": tiny_networks})) as api:
        ahead = Driver(api)
        ahead.start()
        for step in range(5):
            ahead.act(0, step, state(0, step))
        batch = {"transitions": [transition(0, 3, state(0, 4))]}
        problem = refused(ahead, "transitions", batch, status=409, code="transition_out_of_order")
        assert (problem["expected"], problem["received"]) == ("a step from 0 to 2", 3)


def test_an_old_step_cannot_be_stepped_again(mid: Driver) -> None:
    refused(mid, "step", transition(0, 0, state(0, 1)), status=409, code="duplicate_transition")
    mid.step(0, 2, state(0, 3), terminated=True)
    refused(mid, "step", transition(0, 1, state(0, 2)), status=409, code="duplicate_transition")


def test_a_step_sent_again_with_other_numbers_is_refused(mid: Driver) -> None:
    refused(mid, "step", transition(0, 1, state(0, 2), reward=1.0), status=409, code="duplicate_transition")
    refused(mid, "step", transition(0, 1, state(5, 5)), status=409, code="duplicate_transition")


def test_acting_out_of_turn_is_refused(mid: Driver) -> None:
    for step in (0, 1, 4, 1000):
        refused(mid, "act", {"episode": 0, "step": step, "observation": state(0, step)}, status=409, code="wrong_step")
    for episode in (1, 7):
        refused(mid, "act", {"episode": episode, "step": 3, "observation": state(0, 3)}, status=409, code="wrong_episode")
        refused(mid, "step", transition(episode, 2, state(0, 3)), status=409, code="wrong_episode")


def test_without_an_open_episode_nothing_can_be_acted_or_posted(api: TestClient) -> None:
    driver = Driver(api)
    refused(driver, "act", {"episode": 0, "step": 0, "observation": state(0, 0)}, status=409, code="no_open_episode")
    refused(driver, "step", transition(0, 0, state(0, 1)), status=409, code="no_open_episode")
    driver.run_episode(steps=3)
    refused(driver, "act", {"episode": 0, "step": 3, "observation": state(0, 3)}, status=409, code="no_open_episode")
    refused(driver, "transitions", {"transitions": [transition(0, 3, state(0, 4))]}, status=409, code="no_open_episode")


def test_nothing_in_a_batch_may_follow_the_end_of_the_episode(mid: Driver) -> None:
    mid.act(0, 3, state(0, 3))
    batch = [transition(0, 2, state(0, 3), terminated=True), transition(0, 3, state(0, 4))]
    posted = mid.ok(mid.post("transitions", transitions=batch))
    assert [(item["step"], item["status"], item["code"]) for item in posted["results"]] == [
        (2, "stored", None),
        (3, "refused", "no_open_episode"),
    ]
    assert (posted["accepted"], posted["refused"], posted["episode_over"]) == (1, 1, True)


def test_acting_far_ahead_of_the_transitions_is_refused(settings, tiny_networks) -> None:
    from service.app import create_app

    with TestClient(create_app(settings.model_copy(update={"max_steps_ahead": 3}), {"tiny": tiny_networks})) as api:
        driver = Driver(api)
        driver.start()
        for step in range(3):
            driver.act(0, step, state(0, step))
        refused(driver, "act", {"episode": 0, "step": 3, "observation": state(0, 3)}, status=409, code="wrong_step")


def test_a_large_body_is_refused_whether_or_not_it_tells_its_length(mid: Driver) -> None:
    huge = b'{"transitions": [' + b" " * 50_000_000 + b"]}"
    refused(mid, "transitions", huge, status=413, code="body_too_large")
    before = stored(mid)
    response = mid.api.post(f"{mid.path}/transitions", content=(huge[i : i + 100_000] for i in range(0, len(huge), 100_000)))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert stored(mid) == before


@pytest.mark.parametrize(
    "body",
    [
        {"bundle": "nope"},
        {"bundle": ""},
        {"seed": -1},
        {"conditioning_episodes": -1},
        {"ttl_s": 0},
        {"exploration": "x"},
        {"sede": 1},
        {"finetuning": "yes"},
    ],
)
def test_a_session_with_a_wrong_option_is_not_opened(api: TestClient, body: dict[str, Any]) -> None:
    response = api.post("/v1/sessions", json=body)
    assert response.status_code in (404, 422)
    assert next(iter(body)) in response.text or response.json()["code"] == "unknown_bundle"
    assert api.get("/v1/sessions").json()["sessions"] == []


def test_a_wrong_path_method_or_parameter_is_a_problem_too(api: TestClient) -> None:
    for response, status, code in (
        (api.get("/v1/nothing"), 404, "not_found"),
        (api.put("/v1/sessions"), 405, "method_not_allowed"),
        (api.get("/v1/sessions?limit=0"), 422, "invalid_request"),
        (api.get("/v1/sessions?cursor=x"), 422, "invalid_request"),
    ):
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.headers["content-type"] == "application/problem+json"
    path = Driver(api).path
    assert api.get(f"{path}/finetuning?wait_s=61").status_code == 422
    assert api.post(f"{path}/policy/rollback", json={"version": 9}).json()["code"] == "unknown_version"
    assert api.post(f"{path}/policy/rollback").json()["code"] == "unknown_version"


def test_a_fault_of_the_service_tells_a_client_nothing_but_its_number(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(api)

    def broken(*args: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.app.state.parts.store, "load", broken)
    response = api.get(driver.path)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.json()["request_id"]


def test_a_policy_output_that_is_not_finite_never_reaches_a_client(mid: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = mid.api.app.state.parts.bundles["tiny"]
    import numpy as np

    monkeypatch.setattr(networks._decoder, "run_one", lambda *inputs: [np.array([np.nan, 0.0], np.float32)])
    refused(mid, "step", transition(0, 2, state(0, 3)), status=500, code="policy_output_invalid")
