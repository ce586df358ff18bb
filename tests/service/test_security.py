"""The table of ``docs/security.md``, cell by cell, over HTTP."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from service.inference_protocol import _version
from service.roles import Role, Rules, as_markdown
from service.tokens import TokenStore
from tests.conftest import Driver, state, transition

DOCUMENT = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    for line in DOCUMENT.splitlines()
    if re.match(r"\| `(GET|POST|PATCH|DELETE|WS) ", line)
]
COLUMNS = ("stranger", "robot", "operator", "admin")
CELLS = [(row[0], who, allowed) for row in ROWS for who, allowed in zip(COLUMNS, row[1:], strict=True)]

NOTHING_TO_GO_BACK_TO = "unknown_version"
"""What approve and rollback answer once they are let in: this session has one version only."""

BODIES: dict[str, Any] = {
    "POST /v1/sessions": {"seed": 1},
    "PATCH /v1/sessions/{session_id}": {"phase": "adapted"},
    "POST /v1/sessions/{session_id}/act": {"episode": 0, "step": 0, "observation": state(0, 0)},
    "POST /v1/sessions/{session_id}/step": transition(0, 0, state(0, 1)),
    "POST /v1/sessions/{session_id}/transitions": {"transitions": [transition(0, 0, state(0, 1))]},
    "POST /v1/sessions/{session_id}/steps": {"transitions": [transition(0, 0, state(0, 1))]},
    "POST /v1/sessions/{session_id}/rewards": {"rewards": [{"episode": 0, "step": 0, "reward": 1.0}]},
    "POST /v1/sessions/{session_id}/policy/approve": {},
    "POST /v1/sessions/{session_id}/policy/rollback": {},
    "PATCH /v1/sessions/{session_id}/finetuning": {"paused": True},
    "POST /v1/act": {"items": [{"session_id": "0" * 32, "episode": 0, "step": 0, "observation": state(0, 0)}]},
    "POST /v1/step": {"items": [{"session_id": "0" * 32, **transition(0, 0, state(0, 1))}]},
    "POST /v1/tokens": {"role": "robot", "name": "made-by-the-test"},
}


for _versioned in ("", "/versions/{version}"):
    BODIES[f"POST /v2/models/{{model}}{_versioned}/infer"] = {
        "inputs": [
            {"name": "state", "shape": [1, 4], "datatype": "FP32", "data": state(0, 0)},
            {"name": "skill", "shape": [1, 3], "datatype": "FP32", "data": [0.1, 0.2, 0.3]},
        ]
    }


def service_version(api: TestClient) -> str:
    """The version that the Open Inference Protocol has for the tiny bundle."""
    return _version(api.app.state.parts.bundles["tiny"])


class Plant:
    """A service with a token of each role, and another robot's session in the middle of an episode."""

    def __init__(self, api: TestClient, tokens: TokenStore) -> None:
        self.api = api
        self.texts = {role.value: tokens.create(role, f"the-{role}")[1] for role in Role}
        spare, self.texts["other"] = tokens.create(Role.ROBOT, "another-robot")
        self.token_id = spare.token_id
        api.app.state.parts.doors._tokens.refresh()

    def ask(self, who: str, call: str, **names: str) -> Any:
        method, path = call.split()
        if method == "WS":
            return self.open_by_websocket(who, path)
        version = service_version(self.api) if "{version}" in path else ""
        path = path.format(
            model="tiny.skill_decoder",
            version=version,
            session_id=names.get("session_id", ""),
            name="tiny",
            file="meta_policy.onnx",
            token_id=self.token_id,
        )
        headers = {"authorization": f"Bearer {self.texts[who]}"} if who in self.texts else {}
        return self.api.request(method, path, headers=headers, json=BODIES.get(call))

    def open_by_websocket(self, who: str, path: str) -> Any:
        headers = {"authorization": f"Bearer {self.texts[who]}"} if who in self.texts else {}
        try:
            with self.api.websocket_connect(path, headers=headers) as connection:
                if path != "/v1/stream":
                    return SimpleNamespace(status_code=200 if "session_id" in str(connection.receive_bytes()) else 500)
                connection.send_bytes(msgspec.msgpack.encode({"type": "open"}))
                return SimpleNamespace(status_code=msgspec.msgpack.decode(connection.receive_bytes())["status"])
        except WebSocketDenialResponse as refusal:
            refusal.headers["x-request-id"] = refusal.json()["request_id"]
            return refusal

    def session_of(self, who: str, call: str) -> str:
        """A session in which the call can succeed: acted once, unless it is about acting; the outcome known, if it is about its reward."""
        session_id: str = Driver.ok(self.ask(who, "POST /v1/sessions"), 201)["session_id"]
        Driver.ok(self.ask(who, "POST /v1/sessions/{session_id}/episodes", session_id=session_id), 201)
        if not call.endswith("/act"):
            Driver.ok(self.ask(who, "POST /v1/sessions/{session_id}/act", session_id=session_id))
        if call.endswith("/rewards"):
            late = transition(0, 0, state(0, 1), reward=None)
            path, token = f"/v1/sessions/{session_id}/step", self.texts[who]
            Driver.ok(self.api.post(path, json=late, headers={"authorization": f"Bearer {token}"}))
        return session_id

    def stored(self, session_id: str) -> bytes:
        return bytes(self.api.app.state.parts.store.load(session_id).raw)


@pytest.fixture
def plant(api: TestClient) -> Plant:
    return Plant(api, api.app.state.parts.tokens)


def let_in(response: Any) -> bool:
    return response.status_code < 400 or response.json()["code"] == NOTHING_TO_GO_BACK_TO


@pytest.mark.parametrize(("call", "who", "allowed"), CELLS)
def test_a_caller_may_do_what_the_table_says_and_nothing_else(plant: Plant, call: str, who: str, allowed: str) -> None:
    if "{session_id}" not in call:
        refused_or_let_in(plant.ask(who, call), who, allowed)
        return
    if who != "stranger":
        own = plant.ask(who, call, session_id=plant.session_of(who, call))
        refused_or_let_in(own, who, "yes" if allowed == "own" else allowed)
    foreign_id = plant.session_of("other", call)
    before = plant.stored(foreign_id)
    foreign = plant.ask(who, call, session_id=foreign_id)
    if who == "robot":
        unknown = plant.ask(who, call, session_id="0" * 32)
        assert (foreign.status_code, without_ids(foreign)) == (404, without_ids(unknown))
        assert foreign.headers.keys() == unknown.headers.keys()
    else:
        refused_or_let_in(foreign, who, "no" if allowed == "own" else allowed)
    if not let_in(foreign):
        assert plant.stored(foreign_id) == before


def refused_or_let_in(response: Any, who: str, allowed: str) -> None:
    if allowed in ("yes", "own"):
        assert let_in(response), response.text
        return
    problem = response.json()
    expected = (401, "unauthorized") if who == "stranger" else (403, "forbidden")
    assert (response.status_code, problem["code"]) == expected
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem["request_id"]
    assert response.headers.get("www-authenticate") == ('Bearer realm="skillet"' if who == "stranger" else None)


def without_ids(response: Any) -> dict[str, Any]:
    return {name: value for name, value in response.json().items() if name not in ("request_id", "received")}


def test_the_document_shows_the_table_that_the_service_goes_by() -> None:
    assert as_markdown() in DOCUMENT


def test_every_route_has_a_line_in_the_table_and_every_line_a_route(app: FastAPI) -> None:
    found = set()
    for route in iter_route_contexts(app.routes):
        for method in (route.methods or {"WS"}) - {"HEAD"}:
            assert route.path is not None
            rule = Rules().find(method, route.path)
            assert rule is not None, f"{method} {route.path} has no line in service/roles.py: nobody could call it"
            found.add(rule[0].call)
    only_in_table = {row[0] for row in ROWS} - found
    assert only_in_table == {"GET /v1/bundles/{name}/skill_decoder.onnx"}  # one file of those below it


def test_a_robot_lists_its_own_sessions_and_an_operator_all(plant: Plant) -> None:
    mine, others = (plant.session_of(who, "POST /v1/sessions/{session_id}/act") for who in ("robot", "other"))

    def listed(who: str) -> set[str]:
        return {session["session_id"] for session in Driver.ok(plant.ask(who, "GET /v1/sessions"))["sessions"]}

    assert (listed("robot"), listed("other")) == ({mine}, {others})
    assert listed("operator") == listed("admin") == {mine, others}


def test_a_session_that_was_closed_or_expired_is_as_unknown_to_another_robot_as_one_that_never_was(plant: Plant) -> None:
    call = "GET /v1/sessions/{session_id}"
    session_id = plant.session_of("other", call)
    Driver.ok(plant.ask("other", "DELETE /v1/sessions/{session_id}", session_id=session_id))
    assert plant.ask("other", call, session_id=session_id).status_code == 410
    gone, never = (plant.ask("robot", call, session_id=which) for which in (session_id, "0" * 32))
    assert (gone.status_code, without_ids(gone)) == (404, without_ids(never))


def test_an_idempotency_key_of_another_robot_gives_nothing_of_its_session(plant: Plant) -> None:
    made = {}
    for who in ("other", "robot"):
        headers = {"authorization": f"Bearer {plant.texts[who]}", "idempotency-key": "first-session"}
        made[who] = Driver.ok(plant.api.post("/v1/sessions", json={}, headers=headers), 201)["session_id"]
    assert made["other"] != made["robot"]
    assert plant.ask("robot", "GET /v1/sessions/{session_id}", session_id=made["robot"]).status_code == 200


def test_a_websocket_reaches_no_session_of_another_and_ends_with_its_token(plant: Plant) -> None:
    session_id = plant.session_of("other", "GET /v1/sessions/{session_id}")

    def attached(who: str) -> tuple[Any, Any]:
        """The replies to attach and, if it may be, to another act; before that the token is revoked."""
        parts = plant.api.app.state.parts
        with plant.api.websocket_connect("/v1/stream", headers={"authorization": f"Bearer {plant.texts[who]}"}) as connection:
            connection.send_bytes(msgspec.msgpack.encode({"type": "attach", "session_id": session_id}))
            first = msgspec.msgpack.decode(connection.receive_bytes())
            if first["status"] != 200:
                return first, None
            parts.tokens.revoke(plant.token_id)
            parts.doors._tokens.refresh()
            connection.send_bytes(msgspec.msgpack.encode({"type": "end"}))
            return first, msgspec.msgpack.decode(connection.receive_bytes())

    refused, _ = attached("robot")
    assert (refused["status"], refused["body"]["code"]) == (404, "unknown_session")
    _, after = attached("other")
    assert (after["status"], after["body"]["code"]) == (401, "unauthorized")


def test_a_batch_drives_its_own_sessions_and_answers_for_others_as_if_they_were_not_there(plant: Plant) -> None:
    call = "POST /v1/sessions/{session_id}/act"
    own, foreign = plant.session_of("robot", call), plant.session_of("other", call)
    before = plant.stored(foreign)
    items = [{"session_id": each, **BODIES[call]} for each in (foreign, own, f"{own}/../{foreign}")]
    headers = {"authorization": f"Bearer {plant.texts['robot']}"}
    results = Driver.ok(plant.api.post("/v1/act", json={"items": items}, headers=headers))["results"]
    assert [result["status"] for result in results] == [404, 200, 404]
    assert results[0]["problem"]["code"] == "unknown_session"
    assert plant.stored(foreign) == before


def test_a_robot_hands_its_sessions_to_the_next_token_of_its_name(plant: Plant) -> None:
    call = "GET /v1/sessions/{session_id}"
    session_id = plant.session_of("robot", call)
    tokens = plant.api.app.state.parts.tokens
    plant.texts["robot"] = tokens.create(Role.ROBOT, "the-robot")[1]
    plant.api.app.state.parts.doors._tokens.refresh()
    assert plant.ask("robot", call, session_id=session_id).status_code == 200


@pytest.mark.parametrize(
    "trick", ["/act%0A", "//act", "/./act", "/act/", "%2Fact", "/act?x", "/act%00", "/ACT", "%20/act", "/../{own}/act"]
)
def test_no_spelling_of_a_path_leads_around_the_owner(plant: Plant, trick: str) -> None:
    call = "POST /v1/sessions/{session_id}/act"
    own, foreign = plant.session_of("robot", call), plant.session_of("other", call)
    before = plant.stored(foreign)
    headers = {"authorization": f"Bearer {plant.texts['robot']}"}
    response = plant.api.post(f"/v1/sessions/{foreign}{trick.format(own=own)}", json=BODIES[call], headers=headers)
    assert response.status_code in (404, 405) or own in str(response.request.url)
    assert plant.stored(foreign) == before


def test_paths_that_are_not_there_tell_a_stranger_nothing(plant: Plant) -> None:
    for method, path in (("GET", "/v1/nothing"), ("PUT", "/v1/sessions"), ("GET", "/redoc"), ("POST", "/livez")):
        asked = f"{method} {path}"
        assert plant.ask("stranger", asked).status_code == 401
        answer = plant.ask("robot", asked)
        assert (answer.status_code, answer.json()["code"]) in ((404, "not_found"), (405, "method_not_allowed"))
    assert plant.ask("robot", "PUT /v1/sessions").headers["allow"] == "GET, POST"
