"""The short way of act and step answers what the application would answer; the application answers what it does not."""

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.direct_http import read_head
from service.policies import Networks
from service.settings import Settings
from service.storage import connect
from tests.conftest import Driver, state, transition
from tests.service.serving import Answered, Wire, answered_short, request, served

ID = "0" * 32


@pytest.fixture
def port(app: FastAPI, settings: Settings) -> Iterator[int]:
    with served(app, settings) as (found, _):
        yield found


@pytest.fixture
def wire(port: int) -> Iterator[Wire]:
    with Wire(port) as connection:
        yield connection


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return answered_short(monkeypatch)


@pytest.fixture
def long_api(settings: Settings, tiny_networks: Networks) -> Iterator[TestClient]:
    """A second process on the same Redis, that is asked past the server."""
    with TestClient(create_app(settings, {"tiny": tiny_networks})) as client:
        yield client


def opened(wire: Wire, **options: Any) -> str:
    session = wire.post("/v1/sessions", {"seed": 7, **options}).json()
    path = f"/v1/sessions/{session['session_id']}"
    assert wire.post(f"{path}/episodes").status == 201
    return path


def act(path: str, step: int = 0) -> tuple[str, dict[str, Any]]:
    return f"{path}/act", {"episode": 0, "step": step, "observation": state(0, step)}


def step(path: str, number: int, **outcome: Any) -> tuple[str, dict[str, Any]]:
    return f"{path}/step", transition(0, number, state(0, number + 1), **outcome)


def names(answer: Answered) -> list[str]:
    return sorted(set(answer.headers) - {"date", "server"})


def test_an_episode_is_answered_the_short_way_as_the_application_would(wire: Wire, long_api: TestClient, short: list[str]) -> None:
    path, driver = opened(wire, share_skills=True), Driver(long_api, share_skills=True)
    driver.start()
    found = [wire.post(*act(path))] + [wire.post(*step(path, number, terminated=number == 12)) for number in range(13)]
    wanted = [driver.act(0, 0, state(0, 0))]
    wanted += [driver.step(0, number, state(0, number + 1), terminated=number == 12) for number in range(13)]
    assert [answer.json() for answer in found] == wanted
    assert len(short) == 14
    application = driver.post("act", episode=0, step=12, observation=state(0, 12))
    assert names(found[1]) == sorted(application.headers)
    assert float(found[1].headers["server-timing"].removeprefix("app;dur=")) < 1000
    counted = long_api.get("/metrics").text  # another process counts for itself
    assert 'skillet_call_seconds_count{call="step"} 13.0' in counted


def test_what_was_counted_is_in_the_metrics(wire: Wire, port: int, app: FastAPI) -> None:
    path = opened(wire)
    wire.post(*act(path))
    for number in range(6):
        wire.post(*step(path, number))
    wire.post(f"{path}/episodes/end")  # counted when this was read
    text = app.state.parts.metrics.text().decode()
    assert 'skillet_call_seconds_count{call="act"} 1.0' in text
    assert 'skillet_call_seconds_count{call="step"} 6.0' in text
    assert "skillet_transitions_total 6.0" in text
    assert "skillet_skill_transitions_total 2.0" in text


def test_calls_that_come_together_are_answered_together_with_the_same_bits(port: int, long_api: TestClient, short: list[str]) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(12) as threads:
        wires = [stack.enter_context(Wire(port)) for _ in range(12)]
        paths = [opened(wire, seed=seed) for seed, wire in enumerate(wires)]
        found = list(threads.map(_walk, wires, paths))
    assert len(short) == 12 * 8
    for seed, actions in enumerate(found):
        driver = Driver(long_api, seed=seed)
        driver.start()
        assert actions == [driver.act(0, 0, state(0, 0))] + [driver.step(0, number, state(0, number + 1)) for number in range(7)]


def _walk(wire: Wire, path: str) -> list[Any]:
    return [wire.post(*act(path)).json()] + [wire.post(*step(path, number)).json() for number in range(7)]


def test_pieces_and_requests_sent_ahead_are_answered_in_their_order(wire: Wire) -> None:
    path = opened(wire)
    whole = [request(*act(path)), *(request(*step(path, number)) for number in range(4))]
    ahead = b"".join(whole)
    wire.socket.sendall(ahead[:-30])
    assert [wire.answer().json()["step"] for _ in range(4)] == [0, 1, 2, 3]
    wire.socket.sendall(ahead[-30:])
    assert wire.answer().json()["step"] == 4
    wire.socket.sendall(request(*step(path, 4)))
    wire.socket.sendall(request(f"{path}/episodes/end"))
    wire.socket.sendall(request(*step(path, 5)))
    assert [wire.answer().status for _ in range(3)] == [200, 200, 409]


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"transfer_encoding": "chunked", "content_length": "0"}, None, 400),
        ({"content_length": "5"}, None, 400),
        ({"connection": "close"}, None, 200),
        ({"expect": "100-continue"}, None, 200),
        ({"skillet_digest": "0" * 24}, None, 400),
        ({"skillet_deadline_ms": "soon"}, None, 422),
        ({"skillet_deadline_ms": "0.000001"}, None, 409),
        ({"x_request_id": "mine"}, None, 200),
        ({}, b'{"episode": 0', 422),
        ({}, b'{"episode": 0, "step": 0, "observation": [1]}', 422),
        ({}, b'{"episode": 0, "step": 0, "observation": [NaN, 0, 0, 0]}', 422),
        ({}, b'{"episode": 1, "step": 0, "observation": [0, 0, 0, 0]}', 409),
        ({}, b" " * (2**20 + 1), 413),
    ],
)
def test_what_is_unusual_is_answered_by_the_application(wire: Wire, headers: dict[str, str], body: bytes | None, status: int) -> None:
    path, usual = act(opened(wire))
    wire.socket.sendall(request(path, body or usual, **headers))
    answer = wire.answer() if "expect" not in headers else _after_continue(wire)
    assert answer.status == status, answer
    if headers.get("x_request_id"):
        assert answer.headers["x-request-id"] == "mine"
    if status >= 400 and answer.headers["content-type"].startswith("application/problem"):
        assert answer.json()["status"] == status
    if headers.get("connection"):
        assert answer.headers["connection"] == "close"
        assert wire.closed()


def _after_continue(wire: Wire) -> Answered:
    first = wire.socket.recv(25)
    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    return wire.answer()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.0\r\nContent-Length: 0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act?x HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/steps HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: +0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 00\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length:0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length : 0\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\nX: a\r\n b\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\nX: a\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\nX: a\x00b\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\nX: \xc3\xa4\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 1\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\nConnection: upgrade\r\n\r\n" % ID.encode(),
        b"POST /v1/sessions/%s/act HTTP/1.1\r\nContent-Length: 0\r\nUpgrade: websocket\r\n\r\n" % ID.encode(),
    ],
)
def test_only_whole_and_plain_requests_are_read(data: bytes) -> None:
    assert read_head(data) is None


def test_a_plain_request_is_read() -> None:
    body = b'{"episode":0}'
    data = b"POST /v1/sessions/%s/act HTTP/1.1\r\nHOST: a b\r\nContent-Length: 13\r\nconnection: Keep-Alive\r\n\r\n" % ID.encode() + body
    assert read_head(data) == (
        b"POST /v1/sessions/%s/act" % ID.encode(),
        ID.encode(),
        b"act",
        {b"host": b"a b", b"content-length": b"13", b"connection": b"Keep-Alive"},
        body,
    )


def test_a_session_that_another_process_changed_is_read_again(wire: Wire, long_api: TestClient, short: list[str]) -> None:
    path = opened(wire)
    wire.post(*act(path))
    other = long_api.post(step(path, 0)[0], json=step(path, 0)[1]).json()
    again = wire.post(*step(path, 0)).json()
    assert again == {**other, "replayed": True}
    assert len(short) == 1
    assert wire.post(*step(path, 1)).json()["step"] == 2
    long_api.delete(path)
    assert wire.post(*step(path, 2)).json()["code"] == "session_closed"


def test_two_calls_of_one_session_at_once_are_done_one_after_the_other(port: int) -> None:
    with Wire(port) as one, Wire(port) as two:
        path = opened(one)
        one.post(*act(path))
        for number in range(20):
            for wire in (one, two):
                wire.socket.sendall(request(*step(path, number)))
            answers = [wire.answer().json() for wire in (one, two)]
            assert sorted(answer["replayed"] for answer in answers) == [False, True]
            assert answers[0]["action"] == answers[1]["action"]


def test_every_reply_has_the_digest_that_its_request_asked_for(wire: Wire, short: list[str]) -> None:
    def digest(*parts: bytes) -> str:
        return hashlib.blake2b(b"\n".join(parts), digest_size=12).hexdigest()

    path, body = act(opened(wire))
    content = json.dumps(body).encode()
    claimed = digest(f"POST {path}".encode(), content)
    answer = wire.post(path, content, skillet_digest=claimed)
    assert answer.headers["skillet-digest"] == digest(claimed.encode(), f"POST {path}".encode(), b"200", answer.body)
    assert len(short) == 1


def test_a_redis_that_is_gone_is_told_and_found_again(wire: Wire, settings: Settings) -> None:
    path = opened(wire)
    wire.post(*act(path))
    with connect(str(settings.redis_url), 2.0) as redis:
        redis.client_kill_filter(_type="normal", skipme=True)
        assert wire.post(*step(path, 0)).status == 200
        redis.script_flush()
        assert wire.post(*step(path, 1)).status == 200


def test_a_request_that_was_on_its_way_for_longer_than_any_is_late_too(wire: Wire, short: list[str]) -> None:
    def sent(late_ms: float) -> dict[str, str]:
        return {"skillet_deadline_ms": "5000", "skillet_sent_ms": f"{time.monotonic() * 1000 - late_ms:.3f}"}

    path = opened(wire)
    assert wire.post(*act(path), **sent(0)).status == 200
    for number, late_ms in enumerate((59_000, 61_000, 120_000)):
        assert wire.post(*step(path, number), **sent(late_ms)).json()["code"] == "deadline_passed"
        assert wire.post(*step(path, number), **sent(0)).status == 200
    assert len(short) == 4


def test_what_goes_around_counts_once(settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = settings.model_copy(update={"requests_per_s": 10.0})  # 20 at once
    app, now = create_app(limited, {"tiny": tiny_networks}), time.monotonic()
    monkeypatch.setattr(app.state.parts.doors._rates, "_clock", lambda: now)
    with served(app, limited) as (port, _), Wire(port) as wire:
        path = opened(wire)
        asked, body = act(path)
        damaged, late = {"skillet_digest": "0" * 24}, {"skillet_deadline_ms": "1e-6"}
        tries: list[tuple[int, dict[str, str]]] = [(7, {}), (0, damaged), (0, late), (0, {})]
        statuses = [wire.post(asked, {**body, "step": number}, **headers).status for number, headers in 5 * tries]
    assert statuses == [*4 * [409, 400, 409, 200], 409, 400, 429, 429]


def test_more_calls_at_once_than_the_limit_are_refused(settings: Settings, tiny_networks: Networks) -> None:
    few = settings.model_copy(update={"max_in_flight": 2})
    app = create_app(few, {"tiny": tiny_networks})
    with served(app, few) as (port, _), ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(16)]
        paths = [opened(wire) for wire in wires]
        statuses: list[int] = []
        for _ in range(20):
            for wire, path in zip(wires, paths, strict=True):
                wire.socket.sendall(request(*act(path)))
            statuses += [wire.answer().status for wire in wires]
        assert set(statuses) == {200, 503}
        assert wires[0].post(*act(paths[0])).status == 200


def test_a_reply_that_is_under_way_leaves_before_a_stopping_server_closes_the_connection(app: FastAPI, settings: Settings) -> None:
    with served(app, settings) as (port, server), Wire(port) as wire:
        path = opened(wire)
        protocol = next(iter(server.server_state.connections))
        lane, stopped = app.state.lane, []
        answer = lane._answer

        def stop_first() -> None:
            protocol.shutdown()
            stopped.append(True)
            answer()

        lane._answer = stop_first
        reply = wire.post(*act(path))
        assert (reply.status, reply.headers["connection"], stopped) == (200, "close", [True])
        assert wire.closed()


def test_an_idle_connection_is_closed_and_one_in_use_is_not(app: FastAPI, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api_worker._KEEP_ALIVE_S", 1)
    with served(app, settings) as (port, _), Wire(port) as wire:
        path = opened(wire)
        began, number = time.monotonic(), 0
        wire.post(*act(path))
        while time.monotonic() - began < 2.5:
            assert wire.post(*step(path, number)).status == 200
            number += 1
        wire.socket.settimeout(10)
        last = time.monotonic()
        assert wire.closed()
        assert time.monotonic() - last > 0.5


@pytest.mark.parametrize("option", ["access_log", "tracing"])
def test_where_every_request_has_to_be_seen_the_application_sees_it(settings: Settings, tiny_networks: Networks, option: str) -> None:
    seeing = settings.model_copy(update={option: True})
    app = create_app(seeing, {"tiny": tiny_networks})
    assert app.state.lane is None
    if option == "access_log":
        with served(app, seeing) as (port, _), Wire(port) as wire:
            assert wire.post(*act(opened(wire))).status == 200
