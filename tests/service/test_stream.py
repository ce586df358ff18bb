"""`/v1/stream`: the control loop in frames, beside the same over REST, on a real Redis."""

import asyncio
import math
import socket
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.sync.client import connect as connect_websocket

from service import stream
from tests.conftest import Driver, state, transition
from tests.service.framed import Framed
from tests.service.running import RunningService


@pytest.fixture
def framed(api):
    with Framed(api) as connection:
        yield connection


@pytest.fixture
def opened(framed):
    framed.ok("open", body={"seed": 7})
    return framed


def problem(reply):
    body = reply["body"]
    assert set(body) == {"type", "title", "status", "detail", "code", "expected", "received", "action", "request_id"}
    assert body["status"] == reply["status"]
    return body


def test_frames_get_the_same_replies_as_rest_does_for_the_same_seed_to_the_bit(api, framed):
    options = {"conditioning_episodes": 1, "share_skills": True}
    over_rest = Driver(api, **options)
    framed.ok("open", body={"seed": 7, **options})
    for _ in range(3):
        assert framed.run_episode(final_reward=1.0) == over_rest.run_episode(final_reward=1.0)


def test_a_session_opened_by_frame_is_the_one_that_rest_reads(api, framed):
    opened = framed.ok("open", body={"seed": 3, "finetuning": False})
    over_rest = api.get(f"/v1/sessions/{opened['session_id']}").json()
    assert opened == over_rest
    assert (opened["seed"], opened["finetuning"]) == (3, False)


def test_a_dropped_connection_is_resumed_and_a_repeated_frame_has_one_effect(api):
    with Framed(api) as first:
        session_id = first.ok("open")["session_id"]
        first.ok("start", key="a")
        before = first.act(0, 0, state(0, 0))
        first.send("step", body=transition(0, 0, state(0, 1)))
        lost = first.read()["body"]
    with Framed(api) as second:
        attached = second.ok("attach", session_id=session_id)
        assert (attached["step"], attached["episode"]) == (2, 0)
        assert second.ok("start", key="a") == {"episode": 0, "phase": "exploring", "ended_previous": None, "replayed": True}
        again = second.step(0, 0, state(0, 1))
        assert again == {**lost, "replayed": True}
        assert before["step"] == 0
        assert second.step(0, 1, state(0, 2))["step"] == 2


def test_the_same_key_opens_one_session(api):
    with Framed(api) as first, Framed(api) as second:
        opened = [each.ok("open", key="one")["session_id"] for each in (first, second)]
    assert opened[0] == opened[1]


def test_transitions_and_late_rewards_are_taken_as_over_rest(opened):
    opened.ok("start")
    for step in range(3):
        opened.act(0, step, state(0, step))
    late = [transition(0, step, state(0, step + 1), reward=None, terminated=step == 2) for step in range(3)]
    posted = opened.ok("transitions", body={"transitions": late})
    assert (posted["accepted"], posted["episode_over"]) == (3, True)
    rewards = [{"episode": 0, "step": step, "reward": 1.0} for step in range(3)]
    assert opened.ok("rewards", body={"rewards": rewards})["pending"] == []


def test_an_episode_can_be_ended_as_truncated_and_ending_it_again_says_the_same(api, opened):
    opened.ok("start")
    opened.act(0, 0, state(0, 0))
    opened.step(0, 0, state(0, 1))
    ended = opened.ok("end")
    assert ended == {"ended": {"episode": 0, "steps": 1, "gaps": [1], "discarded": [], "missing_rewards": []}}
    assert opened.ok("end") == ended
    assert problem(opened.call("act", body={"episode": 0, "step": 2, "observation": state(0, 2)}))["code"] == "no_open_episode"
    assert opened.ok("start")["ended_previous"] == ended["ended"]


def test_ending_before_the_first_episode_is_refused_over_rest_too(api, opened):
    over_rest = Driver(api)
    refused = api.post(f"{over_rest.path}/episodes/end")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_open_episode")
    assert problem(opened.call("end"))["code"] == "no_open_episode"


BAD_BODIES = [
    ("act", {"episode": 0, "step": 0, "observation": [1.0]}),
    ("act", {"episode": 0, "step": 0, "observation": ["1", 2, 3, 4]}),
    ("act", {"episode": 0, "step": 5, "observation": state(0, 0)}),
    ("act", {"episode": 3, "step": 0, "observation": state(0, 0)}),
    ("act", {"episode": 0, "step": -1, "observation": state(0, 0)}),
    ("act", {"episode": 0, "step": 0, "observation": [1e300, 0, 0, 0]}),
    ("act", {"episode": 0, "step": 0, "observation": state(0, 0), "more": 1}),
    ("act", {}),
    ("step", transition(0, 0, state(0, 1))),
    ("step", {**transition(0, 0, state(0, 1)), "terminated": 1}),
]


@pytest.mark.parametrize(("call", "body"), BAD_BODIES)
def test_a_refused_frame_gets_the_problem_document_of_the_same_rest_call_and_the_connection_goes_on(api, opened, call, body):
    over_rest = Driver(api)
    over_rest.start()
    opened.ok("start")
    found, wanted = problem(opened.call(call, body=body)), over_rest.post(call, **body).json()
    for document in (found, wanted):
        document.pop("request_id")
    for field in ("detail", "action"):
        found[field] = found[field].replace("$.body", "$") if found[field] else None
    assert found == wanted
    assert opened.act(0, 0, state(0, 0))["step"] == 0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["observation", "reward", "deadline_ms", "sent_ms"])
def test_numbers_that_are_not_finite_are_refused_without_effect(opened, number, field):
    opened.ok("start")
    if field == "reward":
        opened.act(0, 0, state(0, 0))
        reply = opened.call("step", body=transition(0, 0, state(0, 1), reward=number))
    elif field == "observation":
        reply = opened.call("act", body={"episode": 0, "step": 0, "observation": [0.0, number, 0.0, 0.0]})
    else:
        times = {"deadline_ms": 10.0, "sent_ms": 0.0, field: number}
        reply = opened.call("act", body={"episode": 0, "step": 0, "observation": state(0, 0)}, **times)
    assert reply["status"] == 422
    assert problem(reply)["code"] == ("invalid_observation" if field == "observation" else "invalid_request")


RAW = {
    "not msgpack": b"\xc1",
    "nothing": b"",
    "truncated": msgspec.msgpack.encode({"type": "act", "id": 1})[:-1],
    "trailing bytes": msgspec.msgpack.encode({"type": "end"}) + b"\x00",
    "a list": msgspec.msgpack.encode([1, 2]),
    "no type": msgspec.msgpack.encode({"id": 1}),
    "an unknown type": msgspec.msgpack.encode({"type": "fly"}),
    "a nest": b"\x91" * 100_000 + b"\xc0",
    "a claim of many entries": b"\xdf\xff\xff\xff\xff",
    "an extension": b"\xc7\x04\x05abcd",
    "a string that is no UTF-8": b"\x81\xa4type\xa1\xff",
}


@pytest.mark.parametrize("name", RAW)
def test_frames_that_cannot_be_read_are_told_so_and_the_connection_goes_on(opened, name):
    opened.socket.send_bytes(RAW[name])
    reply = opened.read()
    assert (reply["id"], reply["status"], problem(reply)["code"]) == (1 if name == "no type" else 0, 422, "invalid_request")
    assert opened.ok("start")["episode"] == 0


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"type": "attach", "session_id": "0" * 32}, 4404),
        ({"type": "attach", "session_id": "../x"}, 4404),
        ({"type": "act", "body": {"episode": 0, "step": 0, "observation": [0.0] * 4}}, 4422),
        ({"type": "open", "body": {"bundle": "no such"}}, 4404),
        ({"type": "open", "key": "with space"}, 4422),
    ],
)
def test_a_first_frame_that_is_refused_closes_the_connection_with_the_status(framed, frame, code):
    framed.socket.send_bytes(msgspec.msgpack.encode(frame))
    assert framed.read()["status"] == code - 4000
    with pytest.raises(WebSocketDisconnect) as closed:
        framed.socket.receive_bytes()
    assert closed.value.code == code


def test_a_session_that_is_closed_elsewhere_closes_the_connection(api, framed):
    session_id = framed.ok("open")["session_id"]
    assert api.delete(f"/v1/sessions/{session_id}").status_code == 200
    assert problem(framed.call("start"))["code"] == "session_closed"
    with pytest.raises(WebSocketDisconnect) as closed:
        framed.socket.receive_bytes()
    assert closed.value.code == 4410


def test_a_connection_speaks_of_one_session(opened):
    assert problem(opened.call("open"))["code"] == "invalid_request"
    assert opened.ok("start")["episode"] == 0


def test_a_text_frame_closes_the_connection(opened):
    opened.socket.send_text("{}")
    with pytest.raises(WebSocketDisconnect) as closed:
        opened.socket.receive_bytes()
    assert closed.value.code == 1003


def test_a_connection_without_a_first_frame_is_closed(api, monkeypatch):
    monkeypatch.setattr(stream, "FIRST_FRAME_S", 0.01)
    with Framed(api) as framed, pytest.raises(WebSocketDisconnect) as closed:
        framed.socket.receive_bytes()
    assert closed.value.code == 4408


def test_pages_of_other_sites_are_refused(api):
    with pytest.raises(WebSocketDisconnect), Framed(api, origin="http://elsewhere.example"):
        pass
    with pytest.raises(WebSocketDisconnect), Framed(api, origin="http://testserver"):  # a name that is made to mean this machine
        pass
    with Framed(api, origin="http://localhost:8000", host="localhost:8000") as framed:
        framed.ok("open")


def test_a_deadline_that_has_passed_is_refused_without_effect(opened):
    opened.ok("start")
    opened.act(0, 0, state(0, 0), deadline_ms=1000.0, sent_ms=50.0)
    late = opened.call("step", body=transition(0, 0, state(0, 1)), deadline_ms=5.0, sent_ms=-1000.0)
    assert problem(late)["code"] == "deadline_passed"
    assert opened.step(0, 0, state(0, 1))["replayed"] is False


def test_frames_with_digests_are_checked_both_ways(api):
    with Framed(api, digests=True) as framed:
        framed.ok("open", body={"seed": 7})
        framed.ok("start")
        framed.socket.send_bytes(bytes(12) + msgspec.msgpack.encode({"type": "end"}))
        refused = msgspec.msgpack.decode(framed.socket.receive_bytes()[12:])
        assert (refused["id"], refused["status"], problem(refused)["code"]) == (0, 400, "damaged_request")
        assert framed.act(0, 0, state(0, 0))["step"] == 0


@pytest.fixture(scope="module")
def running(tiny_bundle, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    with RunningService(tiny_bundle.path, data, "--no-learner", SKILLET_MAX_BODY_BYTES="65536") as service:
        yield service


@pytest.fixture
def address(running):
    return f"ws://127.0.0.1:{running.pool.port}/v1/stream"


def test_a_frame_above_the_limit_closes_the_connection_and_the_service_goes_on(running, address):
    with connect_websocket(address) as client:
        client.send(b"\x00" * 70_000)
        with pytest.raises(Exception, match="1009"):
            client.recv(timeout=10)
    assert running.get("/livez").status_code == 200


def test_a_client_that_does_not_read_is_held_back_and_then_gets_every_reply_in_order(running, address):
    frame = msgspec.msgpack.encode({"type": "transitions", "body": {"transitions": [transition(0, 0, state(0, 1))] * 400}})
    asked = [{"type": "open"}, {"type": "start"}, {"type": "act", "body": {"episode": 0, "step": 0, "observation": state(0, 0)}}]

    async def flood() -> list[dict[str, Any]]:
        sent = 0

        async def send(client: ClientConnection) -> None:
            nonlocal sent
            for _ in range(500):  # replies of 9 MB, more than the sockets hold
                await client.send(frame)
                sent += 1

        url = urlsplit(address)
        connection = socket.socket()
        # Before connecting: of a size that the kernel does not let grow. The service's own side may grow to 4 MB.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect((url.hostname, url.port))
        async with connect(address, compression=None, sock=connection) as client:
            for first in asked:
                await client.send(msgspec.msgpack.encode(first))
                assert msgspec.msgpack.decode(await client.recv())["status"] < 300
            sending = asyncio.create_task(send(client))
            before = -1
            while before < sent:
                before = sent
                await asyncio.wait([sending], timeout=0.5)
            assert sent < 500
            replies = [msgspec.msgpack.decode(await client.recv())["body"] for _ in range(500)]
            await sending
        return replies

    replies = asyncio.run(asyncio.wait_for(flood(), 200))
    assert [reply["accepted"] for reply in replies] == [1] + [0] * 499
    assert {reply["duplicates"] for reply in replies[1:]} == {400}


def test_the_service_that_stops_says_so(tiny_bundle, tmp_path):
    with (
        RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service,
        connect_websocket(f"ws://127.0.0.1:{service.pool.port}/v1/stream") as client,
    ):
        client.send(msgspec.msgpack.encode({"type": "open"}))
        assert msgspec.msgpack.decode(client.recv(timeout=10))["status"] == 201
        assert service.stop() == 0
        with pytest.raises(Exception, match="1012"):
            client.recv(timeout=10)
