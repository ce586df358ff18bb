"""Caps: requests a second and open sessions, of one token's name and of all."""

import msgspec
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.errors import TooManyRequests
from service.limits import RequestRates
from service.policies import Networks
from service.roles import Role
from service.settings import Settings
from tests.conftest import Driver, state


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rates(clock: Clock, **limits: float) -> RequestRates:
    return RequestRates(Settings(redis_url="unix:///nowhere", **limits), clock)


def taken(limited: RequestRates, owner: str | None, tries: int = 1000) -> int:
    """How many requests go through at once."""
    for count in range(tries):
        try:
            limited.take(owner)
        except TooManyRequests:
            return count
    return tries


def test_two_seconds_worth_at_once_then_so_many_a_second() -> None:
    clock = Clock()
    limited = rates(clock, requests_per_s_per_token=10)
    assert taken(limited, "arm") == 20
    clock.now += 0.5
    assert taken(limited, "arm") == 5
    clock.now += 1e6
    assert taken(limited, "arm") == 20


def test_what_is_refused_says_when_to_come_again_and_that_is_true() -> None:
    clock = Clock()
    limited = rates(clock, requests_per_s_per_token=0.25)
    taken(limited, "arm")
    with pytest.raises(TooManyRequests) as refused:
        limited.take("arm")
    assert refused.value.retry_after_s == 4
    clock.now += refused.value.retry_after_s
    assert taken(limited, "arm") == 1


def test_one_owner_does_not_use_up_what_another_has_and_all_share_the_whole() -> None:
    limited = rates(Clock(), requests_per_s_per_token=10, requests_per_s=15)
    assert [taken(limited, owner) for owner in ("a", "b", "c")] == [20, 10, 0]
    assert taken(rates(Clock(), requests_per_s_per_token=10, requests_per_s=0), None) == 1000
    assert taken(rates(Clock(), requests_per_s_per_token=0, requests_per_s=7), None) == 14


class Plant:
    """A service with low limits, two robots and an operator."""

    def __init__(self, settings: Settings, networks: Networks, **limits: float) -> None:
        self.app = create_app(settings.model_copy(update=limits), {"tiny": networks})
        self.api = TestClient(self.app, raise_server_exceptions=False)
        parts = self.app.state.parts
        self.texts = {
            name: parts.tokens.create(role, name)[1] for name, role in (("a", Role.ROBOT), ("b", Role.ROBOT), ("o", Role.OPERATOR))
        }
        parts.doors._tokens.refresh()

    def headers(self, who: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.texts[who]}"}

    def open(self, who: str, **headers: str):
        return self.api.post("/v1/sessions", json={}, headers={**self.headers(who), **headers})


def test_a_robot_that_asks_too_often_gets_429_and_the_others_do_not(settings: Settings, tiny_networks: Networks) -> None:
    plant = Plant(settings, tiny_networks, requests_per_s_per_token=0.5)  # one at once, then one in two seconds
    assert plant.open("a").status_code == 201
    refused = plant.open("a")
    assert (refused.status_code, refused.json()["code"], refused.headers["content-type"]) == (
        429,
        "too_many_requests",
        "application/problem+json",
    )
    assert int(refused.headers["retry-after"]) == refused.json()["retry_after_s"] == 2
    assert plant.open("b").status_code == 201
    assert plant.app.state.parts.store.redis.zcard("skillet:sessions") == 2  # the refused one had no effect


def test_strangers_and_health_checks_use_up_nothing(settings: Settings, tiny_networks: Networks) -> None:
    plant = Plant(settings, tiny_networks, requests_per_s=0.5)
    for _ in range(5):
        assert plant.api.get("/v1/sessions").status_code == 401
        assert plant.api.get("/livez").status_code == 200
    assert plant.open("a").status_code == 201
    assert plant.open("b").status_code == 429


def test_items_of_a_batch_and_frames_of_a_stream_count_as_requests(settings: Settings, tiny_networks: Networks) -> None:
    plant = Plant(settings, tiny_networks, requests_per_s_per_token=2.0)  # four at once
    session_id = plant.open("a").json()["session_id"]
    item = {"session_id": session_id, "episode": 0, "step": 0, "observation": state(0, 0)}
    results = plant.api.post("/v1/act", json={"items": [item] * 4}, headers=plant.headers("a")).json()["results"]
    assert [result["status"] for result in results] == [409, 409, 429, 429]
    assert results[-1]["problem"]["retry_after_s"] == 1
    with plant.api.websocket_connect("/v1/stream", headers=plant.headers("b")) as connection:
        replies = []
        for frame in ({"type": "open"}, *[{"type": "start"}] * 3):
            connection.send_bytes(msgspec.msgpack.encode(frame))
            replies.append(msgspec.msgpack.decode(connection.receive_bytes()))
    assert [reply["status"] for reply in replies] == [201, 201, 201, 429]
    assert replies[-1]["body"]["retry_after_s"] == 1


def test_no_more_sessions_than_a_token_may_have_until_one_is_closed(settings: Settings, tiny_networks: Networks) -> None:
    plant = Plant(settings, tiny_networks, max_sessions_per_token=2)
    first, _ = plant.open("a"), plant.open("a")
    refused = plant.open("a")
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "too_many_sessions", "30")
    assert "SKILLET_MAX_SESSIONS_PER_TOKEN" in refused.json()["action"]
    assert plant.open("b").status_code == 201
    assert plant.api.delete(f"/v1/sessions/{first.json()['session_id']}", headers=plant.headers("a")).status_code == 200
    assert plant.open("a").status_code == 201


def test_no_more_sessions_than_the_service_may_have(settings: Settings, tiny_networks: Networks) -> None:
    plant = Plant(settings, tiny_networks, max_sessions=2, max_sessions_per_token=2)
    assert [plant.open(who).status_code for who in ("a", "b", "o")] == [201, 201, 429]


def test_a_repeated_creation_gets_its_session_also_at_the_limit(settings: Settings, tiny_networks: Networks) -> None:
    plant = Plant(settings, tiny_networks, max_sessions_per_token=1)
    keyed = {"idempotency-key": "mine"}
    first = plant.open("a", **keyed).json()["session_id"]
    assert plant.open("a", **keyed).json()["session_id"] == first
    late = {"idempotency-key": "late"}
    assert plant.open("a", **late).status_code == 429
    plant.api.delete(f"/v1/sessions/{first}", headers=plant.headers("a"))
    assert plant.open("a", **late).status_code == 201  # the refusal did not use the key up


def test_where_no_token_is_asked_for_only_the_whole_is_limited(settings: Settings, tiny_networks: Networks) -> None:
    app = create_app(settings.model_copy(update={"max_sessions_per_token": 1, "requests_per_s_per_token": 0.5}), {"tiny": tiny_networks})
    api = TestClient(app)
    assert [api.post("/v1/sessions", json={}).status_code for _ in range(3)] == [201] * 3
    Driver(api).start()
