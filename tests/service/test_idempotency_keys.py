"""Opening a session or starting an episode again with the same idempotency key. Over HTTP, on a real Redis."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import schemas
from service.keys import creation
from service.session_state import Loaded
from service.sessions import new_session_id, unknown_session
from service.tokens import NOBODY
from service.wire import encode
from tests.conftest import Driver, state
from tests.service.test_reaper import metric


def test_opening_a_session_again_with_its_key_opens_no_second_one(api: TestClient) -> None:
    def opened(key: str, **body: Any) -> Any:
        return api.post("/v1/sessions", json=body, headers={"idempotency-key": key})

    first, again, other = opened("a", seed=3), opened("a", seed=3), opened("b", seed=3)
    assert [reply.status_code for reply in (first, again, other)] == [201, 201, 201]
    assert first.json()["session_id"] == again.json()["session_id"] != other.json()["session_id"]
    assert len(api.get("/v1/sessions").json()["sessions"]) == 2
    reused = opened("a", seed=4)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    bad = opened("x" * 201)
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_request")


def test_a_session_that_is_opened_again_with_its_key_counts_once(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(**headers: str) -> float:
        Driver.ok(api.post("/v1/sessions", headers=headers), 201)
        return metric(api.get("/metrics").text, "skillet_sessions_opened_total")

    assert [opened(**{"idempotency-key": "a"}) for _ in range(3)] == [1, 1, 1]
    assert [opened(), opened(), opened(**{"idempotency-key": "b"})] == [2, 3, 4]
    store = api.app.state.parts.store
    loads = iter([unknown_session("0" * 32)])  # a repetition that looks before the first request has stored the session
    load = store.load
    with monkeypatch.context() as patch:

        def load_late(session_id: str) -> Loaded:
            for error in loads:
                raise error
            return load(session_id)

        patch.setattr(store, "load", load_late)
        assert opened(**{"idempotency-key": "b"}) == 4


def test_a_session_whose_creator_died_before_it_was_made_is_made_by_the_repetition(api: TestClient) -> None:
    claimed = api.app.state.parts.created.claim("k", encode(schemas.OpenSession()), new_session_id(NOBODY))
    assert api.get(f"/v1/sessions/{claimed}").status_code == 404
    session = Driver.ok(api.post("/v1/sessions", headers={"idempotency-key": "k"}), 201)
    assert session["session_id"] == claimed
    assert [each["session_id"] for each in api.get("/v1/sessions").json()["sessions"]] == [session["session_id"]]


def test_starting_an_episode_again_with_its_key_starts_no_second_one(api: TestClient) -> None:
    driver = Driver(api)

    def start(key: str) -> Any:
        return driver.ok(api.post(f"{driver.path}/episodes", headers={"idempotency-key": key}), 201)

    first = start("one")
    driver.act(0, 0, state(0, 0))
    assert start("one") == {**first, "replayed": True}
    assert driver.get()["step"] == 1
    second = start("two")
    assert (second["episode"], second["ended_previous"]["episode"], start("one")["episode"]) == (1, 0, 0)
    assert driver.get()["episode"] == 1


def test_the_keys_of_created_sessions_expire(api: TestClient) -> None:
    api.post("/v1/sessions", headers={"idempotency-key": "k"})
    redis = api.app.state.parts.store.redis
    (key,) = redis.keys(creation("*"))
    assert 23 * 3600 < redis.ttl(key) <= 24 * 3600
