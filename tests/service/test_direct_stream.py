"""The short way of `/v1/stream`'s frames answers what the application would answer, in the order in which they came."""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from websockets.sync.client import ClientConnection, connect

from service.app import create_app
from service.policies import Networks
from service.settings import Settings
from service.storage import connect as connect_redis
from tests.conftest import Driver, state, transition
from tests.service.serving import answered_short, served

DIGESTS: Any = ["skillet.v1.digest"]


@pytest.fixture
def address(app: FastAPI, settings: Settings) -> Iterator[str]:
    with served(app, settings) as (port, _):
        yield f"ws://127.0.0.1:{port}/v1/stream"


@pytest.fixture
def stream(address: str) -> Iterator[ClientConnection]:
    with connect(address, compression=None) as connection:
        yield connection


@pytest.fixture
def long_api(settings: Settings, tiny_networks: Networks) -> Iterator[TestClient]:
    """A second process on the same Redis, that is asked past the server."""
    with TestClient(create_app(settings, {"tiny": tiny_networks})) as client:
        yield client


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return answered_short(monkeypatch)


def frame(kind: str, **fields: Any) -> bytes:
    return msgspec.msgpack.encode({"type": kind, **fields})


def act(number: int, step: int = 0, **fields: Any) -> bytes:
    return frame("act", id=number, body={"episode": 0, "step": step, "observation": state(0, step)}, **fields)


def step(number: int, of: int, **fields: Any) -> bytes:
    return frame("step", id=number, body=transition(0, of, state(0, of + 1)), **fields)


def read(stream: ClientConnection) -> Any:
    return msgspec.msgpack.decode(bytes(stream.recv(timeout=20)))


def ask(stream: ClientConnection, data: bytes) -> Any:
    stream.send(data)
    return read(stream)


def begun(stream: ClientConnection, **options: Any) -> str:
    session = ask(stream, frame("open", body={"seed": 7, **options}))["body"]
    assert ask(stream, frame("start"))["status"] == 201
    return str(session["session_id"])


def test_frames_are_answered_the_short_way_as_the_application_would(
    stream: ClientConnection, long_api: TestClient, short: list[str]
) -> None:
    begun(stream)
    driver = Driver(long_api)
    driver.start()
    found = [ask(stream, act(1))] + [ask(stream, step(number + 2, number)) for number in range(12)]
    wanted = [driver.act(0, 0, state(0, 0))] + [driver.step(0, number, state(0, number + 1)) for number in range(12)]
    assert [reply["body"] for reply in found] == wanted
    assert [reply["id"] for reply in found] == list(range(1, 14))
    assert all(reply["status"] == 200 and reply["app_ms"] > 0 for reply in found)
    assert len(short) == 13


def test_frames_sent_ahead_are_answered_in_their_order_whichever_way_each_takes(stream: ClientConnection, short: list[str]) -> None:
    begun(stream)
    sent = [act(1)]
    for number in range(20):
        sent += [step(10 * number + 2, number), frame("rewards", id=10 * number + 3, body={"rewards": []}), step(10 * number + 4, number)]
    for data in sent:
        stream.send(data)
    found = [read(stream) for _ in sent]
    assert [reply["id"] for reply in found] == [1, *(10 * number + more for number in range(20) for more in (2, 3, 4))]
    assert [reply["body"].get("replayed") for reply in found[1::3]] == [False] * 20
    assert [reply["status"] for reply in found[2::3]] == [422] * 20
    assert [reply["body"].get("replayed") for reply in found[3::3]] == [True] * 20
    assert short


def test_a_message_in_fragments_after_one_that_is_under_way_keeps_its_place(stream: ClientConnection) -> None:
    begun(stream)
    ask(stream, act(1))
    for number in range(10):
        stream.send(step(number, number))
        data = step(100 + number, number)
        stream.send([data[:9], data[9:20], data[20:]])
        assert [read(stream)["id"] for _ in range(2)] == [number, 100 + number]


def test_a_digest_is_checked_and_a_damaged_frame_is_told(address: str, short: list[str]) -> None:
    def sealed(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=12).digest() + data

    with connect(address, compression=None, subprotocols=DIGESTS) as stream:
        for data in (frame("open"), frame("start")):
            stream.send(sealed(data))
            stream.recv(timeout=20)
        data = sealed(act(3))
        stream.send(data)
        reply = bytes(stream.recv(timeout=20))
        assert reply[:12] == hashlib.blake2b(data[:12] + reply[12:], digest_size=12).digest()
        assert msgspec.msgpack.decode(reply[12:])["status"] == 200
        assert len(short) == 1
        stream.send(bytes(12) + step(4, 0))
        assert msgspec.msgpack.decode(bytes(stream.recv(timeout=20))[12:])["body"]["code"] == "damaged_request"


def test_what_is_refused_gets_its_problem_and_has_no_effect(stream: ClientConnection) -> None:
    begun(stream)
    assert ask(stream, step(1, 0))["body"]["code"] == "step_not_acted"
    assert ask(stream, act(2, deadline_ms=1e-6))["body"]["code"] == "deadline_passed"
    assert ask(stream, act(3))["body"]["replayed"] is False
    assert ask(stream, frame("act", body={"episode": 0, "step": 1, "observation": [1.0]}))["body"]["code"] == "invalid_observation"


def test_a_frame_that_was_on_its_way_for_longer_than_any_is_late_too(stream: ClientConnection, short: list[str]) -> None:
    def sent(late_ms: float) -> dict[str, float]:
        return {"deadline_ms": 5000.0, "sent_ms": time.monotonic() * 1000 - late_ms}

    begun(stream)
    assert ask(stream, act(1, **sent(0)))["status"] == 200
    for number, late_ms in enumerate((59_000, 61_000, 120_000)):
        assert ask(stream, step(2, number, **sent(late_ms)))["body"]["code"] == "deadline_passed"
        assert ask(stream, step(3, number, **sent(0)))["status"] == 200
    assert len(short) == 4


def test_a_frame_that_goes_around_counts_once(settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = settings.model_copy(update={"requests_per_s": 10.0})  # 20 at once
    app, now = create_app(limited, {"tiny": tiny_networks}), time.monotonic()
    monkeypatch.setattr(app.state.parts.doors._rates, "_clock", lambda: now)
    with served(app, limited) as (port, _), connect(f"ws://127.0.0.1:{port}/v1/stream", compression=None) as stream:
        begun(stream)  # after the handshake two more
        tries = [act(1, 7), act(2, deadline_ms=1e-6), act(3)]
        statuses = [ask(stream, data)["status"] for data in 6 * tries]
    assert statuses == [*5 * [409, 409, 200], 409, 409, 429]


def test_a_session_that_was_changed_or_closed_elsewhere_is_read_again(stream: ClientConnection, long_api: TestClient) -> None:
    path = f"/v1/sessions/{begun(stream)}"
    ask(stream, act(1))
    other = long_api.post(f"{path}/step", json=transition(0, 0, state(0, 1))).json()
    assert ask(stream, step(2, 0))["body"] == {**other, "replayed": True}
    long_api.delete(path)
    assert ask(stream, step(3, 1))["body"]["code"] == "session_closed"
    with pytest.raises(Exception, match="4410"):
        stream.recv(timeout=20)


def test_a_connection_to_redis_that_was_cut_is_made_again(stream: ClientConnection, settings: Settings) -> None:
    begun(stream)
    with connect_redis(str(settings.redis_url), 2.0) as redis:
        redis.client_kill_filter(_type="normal", skipme=True)
        assert ask(stream, act(1))["status"] == 200


def test_a_stopping_server_answers_what_is_under_way_first(app: FastAPI, settings: Settings) -> None:
    with served(app, settings) as (port, server), connect(f"ws://127.0.0.1:{port}/v1/stream", compression=None) as stream:
        begun(stream)
        protocol = next(iter(server.server_state.connections))
        lane = app.state.lane
        answer = lane._answer

        def stop_first() -> None:
            protocol.shutdown()
            answer()

        lane._answer = stop_first
        assert ask(stream, act(1))["status"] == 200
        with pytest.raises(Exception, match="1012"):
            stream.recv(timeout=20)
