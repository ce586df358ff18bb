"""The safety envelope in the service: actions held, observations flagged or refused, deadlines kept, replies framed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from service.app import create_app
from service.deadlines import Deadlines
from service.errors import InvalidRequest
from service.framing import digest
from service.policies import Networks
from service.session_errors import DeadlinePassed
from service.settings import Settings
from tests.conftest import Driver, state, transition
from tests.tiny_bundle import with_envelope
from training.contract.bundle import Bundle
from training.contract.envelope import Envelope

LIMITS = Envelope(
    action_low=(-0.02, -0.5),
    action_high=(0.02, 0.5),
    action_change=(0.01, 0.001),
    observation_low=(-1.0,) * 4,
    observation_high=(1.0,) * 4,
    refused_low=(-50.0,) * 4,
    refused_high=(50.0,) * 4,
    source="a test",
)


@pytest.fixture(scope="module")
def guarded_networks(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(with_envelope(tiny_bundle, tmp_path_factory.mktemp("guarded") / "tiny", LIMITS))


@pytest.fixture
def guarded(settings: Settings, guarded_networks: Networks):
    with TestClient(create_app(settings, {"tiny": guarded_networks}), raise_server_exceptions=False) as client:
        yield client


def wild_decoder(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that jumps from one end to the other."""
    calls = iter(range(10_000))
    monkeypatch.setattr(networks._decoder, "run_one", lambda *inputs: [np.array([(-1.0) ** next(calls)] * 2, np.float32)])


def test_no_action_leaves_the_envelope_however_wild_the_policy(guarded, guarded_networks, monkeypatch) -> None:
    wild_decoder(guarded_networks, monkeypatch)
    replies = Driver(guarded).run_episode(steps=20)[:-1]
    actions = np.array([reply["action"] for reply in replies], np.float32)
    assert (np.abs(actions) <= np.float32([0.02, 0.5])).all()
    assert (np.abs(np.diff(actions, axis=0)) <= np.float32([0.01, 0.001]) + 1e-7).all()
    assert replies[0]["limited"] == ["action_limited"]
    assert all(reply["limited"] == ["action_limited", "change_limited"] for reply in replies[1::2])  # away from the limit
    assert all("action_limited" in reply["limited"] for reply in replies)
    metrics = guarded.get("/metrics").text
    assert 'skillet_actions_limited_total{limit="action_limited"} 20.0' in metrics
    changes = sum("change_limited" in reply["limited"] for reply in replies)
    assert f'skillet_actions_limited_total{{limit="change_limited"}} {changes}.0' in metrics


def test_an_episodes_first_action_may_be_anywhere_inside(guarded, guarded_networks, monkeypatch) -> None:
    wild_decoder(guarded_networks, monkeypatch)
    driver = Driver(guarded)
    first = [driver.run_episode(steps=2)[0]["action"] for _ in range(2)]
    assert np.sign(first).tolist() == [[1, 1], [1, 1]]
    np.testing.assert_allclose(first, [[0.02, 0.5]] * 2)


def test_a_limited_action_asked_for_again_is_the_same_and_counted_once(guarded, guarded_networks, monkeypatch) -> None:
    wild_decoder(guarded_networks, monkeypatch)
    driver = Driver(guarded)
    driver.start()
    first = driver.act(0, 0, state(0, 0))
    assert driver.act(0, 0, state(0, 0)) == {**first, "replayed": True}
    assert 'skillet_actions_limited_total{limit="action_limited"} 1.0' in guarded.get("/metrics").text


def test_the_envelope_can_be_turned_off_by_the_operator_only(settings, tiny_bundle, guarded_networks) -> None:
    off = settings.model_copy(update={"envelope": False, "bundles": (guarded_networks.bundle.path,)})
    with TestClient(create_app(off)) as api:
        envelope = Driver(api).session["envelope"]
    assert envelope["action_high"] == [1.0, 1.0]
    assert Settings().envelope is True


def test_a_session_tells_its_limits(guarded) -> None:
    session = Driver(guarded).session
    assert session["envelope"] == json.loads(LIMITS.model_dump_json())
    assert Driver.ok(guarded.get(f"/v1/sessions/{session['session_id']}"))["envelope"] == session["envelope"]


def test_an_observation_outside_is_flagged_by_name_and_acted_on(guarded) -> None:
    driver = Driver(guarded)
    driver.start()
    assert driver.act(0, 0, [0.0, 2.0, 0.0, -3.0])["outside"] == ["y", "vy"]
    assert driver.step(0, 0, [0.0, 0.0, 0.0, 0.0])["outside"] == []
    assert "skillet_observations_outside_total 1.0" in guarded.get("/metrics").text


@pytest.mark.parametrize(("path", "body"), [
    ("act", {"episode": 0, "step": 1, "observation": [0.0, 0.0, 51.0, 0.0]}),
    ("step", transition(0, 0, [0.0, 0.0, 51.0, 0.0])),
    ("transitions", {"transitions": [transition(0, 0, [0.0, 0.0, 51.0, 0.0])]}),
])  # fmt: skip
def test_an_observation_wildly_outside_is_refused_without_effect(guarded, path: str, body: dict[str, Any]) -> None:
    driver = Driver(guarded)
    driver.start()
    driver.act(0, 0, state(0, 0))
    before = driver.get()
    reply = driver.post(path, **body)
    assert (reply.status_code, reply.json()["code"]) == (422, "observation_out_of_range")
    assert "vx" in reply.json()["detail"]
    assert reply.json()["expected"] == "-50 to 50 m/s"
    assert driver.get() == before


def test_a_bundle_without_an_envelope_limits_nothing_but_the_spec(api: TestClient) -> None:
    driver = Driver(api)
    driver.start()
    reply = driver.act(0, 0, [0.0, 1e6, 0.0, 0.0])
    assert (reply["limited"], reply["outside"]) == ([], ["y"])


# Deadlines


class Clock:
    def __init__(self) -> None:
        self.ms = 1e6

    def __call__(self) -> float:
        return self.ms


def headers(sent_ms: float | None, deadline_ms: float) -> dict[str, str]:
    return {"skillet-deadline-ms": str(deadline_ms)} | ({} if sent_ms is None else {"skillet-sent-ms": str(sent_ms)})


@pytest.fixture
def clock(api: TestClient) -> Clock:
    made = Clock()
    parts = api.app.state.parts
    object.__setattr__(parts, "deadlines", Deadlines(made))
    return made


def test_a_request_that_was_held_up_is_refused_without_effect(driver: Driver, clock: Clock) -> None:
    driver.start()

    def act(sent_ms: float) -> Any:
        body = {"episode": 0, "step": 0, "observation": state(0, 0)}
        return driver.api.post(f"{driver.path}/act", json=body, headers=headers(sent_ms, 50))

    before = driver.get()
    assert driver.post("transitions", transitions=[transition(0, 0, state(0, 0))]).status_code == 409
    clock.ms += 1000
    assert act(sent_ms=500.0).status_code == 200  # the first: sets what counts as no delay
    clock.ms += 100
    late = act(sent_ms=549.0)  # sent 49 ms later, came 100 ms later: 51 ms on its way
    assert (late.status_code, late.json()["code"]) == (409, "deadline_passed")
    assert act(sent_ms=551.0).status_code == 200
    assert driver.get()["step"] == before["step"] + 1


def test_work_that_takes_too_long_is_refused_before_it_is_saved(driver: Driver, clock: Clock, monkeypatch) -> None:
    driver.start()
    driver.act(0, 0, state(0, 0))
    networks = driver.api.app.state.parts.bundles["tiny"]
    decode = networks.decode

    def slow(*inputs: Any) -> Any:
        clock.ms += 60
        return decode(*inputs)

    monkeypatch.setattr(networks, "decode", slow)
    before = driver.get()
    body = transition(0, 0, state(0, 1))
    late = driver.api.post(f"{driver.path}/step", json=body, headers=headers(None, 50))
    assert (late.status_code, late.json()["code"]) == (409, "deadline_passed")
    assert driver.get() == before
    assert driver.api.post(f"{driver.path}/step", json=body, headers=headers(None, 70)).status_code == 200


def test_a_client_whose_clock_began_anew_is_known_by_its_second_request() -> None:
    for idle_ms in (1000.0, 45_000.0, 3.6e6):
        clock, began = Clock(), 5e8
        deadlines = Deadlines(clock)
        for step in range(100):
            clock.ms += 100
            read(deadlines, sent_ms=began + 100 * step, deadline_ms=50)
        clock.ms += idle_ms
        refused = 0
        for step in range(20):  # switched on again: its clock began at zero
            clock.ms += 100
            try:
                read(deadlines, sent_ms=100.0 * step, deadline_ms=50)
            except DeadlinePassed:
                refused += 1
        assert refused <= 1
        clock.ms += 160
        with pytest.raises(DeadlinePassed):
            read(deadlines, sent_ms=2000.0, deadline_ms=50)


def test_a_damaged_time_of_sending_is_found_before_it_counts(driver: Driver, clock: Clock) -> None:
    driver.start()
    body = json.dumps({"episode": 0, "step": 0, "observation": state(0, 0)}).encode()

    def act(sent: str, claimed: str) -> Any:
        asked = f"POST {driver.path}/act\nskillet-deadline-ms: 50.0\nskillet-sent-ms: {claimed}".encode()
        given = headers(None, 50.0) | {"skillet-sent-ms": sent, "skillet-digest": digest(asked, body).decode()}
        return driver.api.post(f"{driver.path}/act", content=body, headers=given)

    assert act("500.0", "500.0").status_code == 200
    assert act("40500.0", "500.0").json()["code"] == "damaged_request"
    assert act("500.0", "500.0").status_code == 200


def test_clocks_that_drift_apart_are_followed() -> None:
    clock = Clock()
    deadlines = Deadlines(clock)
    for second in range(600):  # the client's clock is 0.1 % slow: after ten minutes 600 ms behind
        clock.ms = 1e6 + 1000 * second
        read(deadlines, sent_ms=999.0 * second, deadline_ms=100)
    clock.ms += 300
    with pytest.raises(DeadlinePassed):
        read(deadlines, sent_ms=999.0 * 599, deadline_ms=100)


def read(deadlines: Deadlines, *, sent_ms: float, deadline_ms: float) -> None:
    sent = [(name.lower().encode(), value.encode()) for name, value in headers(sent_ms, deadline_ms).items()]
    request = Request({"type": "http", "headers": sent})
    deadline = deadlines.read(request, "s")
    assert deadline is not None
    deadline.check()


@pytest.mark.parametrize("wrong", ["", "x", "nan", "inf", "-1", "0"])
def test_a_deadline_that_is_no_number_is_refused(driver: Driver, wrong: str) -> None:
    driver.start()
    body = {"episode": 0, "step": 0, "observation": state(0, 0)}
    reply = driver.api.post(f"{driver.path}/act", json=body, headers={"skillet-deadline-ms": wrong})
    assert (reply.status_code, reply.json()["code"]) == (422, InvalidRequest.code)


# Framing


def test_every_reply_has_a_request_id_and_its_time(api: TestClient, monkeypatch) -> None:
    driver = Driver(api)

    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    replies = [api.get("/livez"), api.get("/v1/nothing"), driver.post("act"), api.get("/v1/bundles/tiny/README.md"), api.get("/metrics")]
    monkeypatch.setattr(api.app.state.parts.store, "load", broken)
    replies.append(api.get(driver.path))
    assert [reply.status_code for reply in replies] == [200, 404, 422, 200, 200, 500]
    for reply in replies:
        name, _, duration = reply.headers["server-timing"].partition(";dur=")
        assert name == "app"
        assert 0 < float(duration) < 60_000
        assert reply.headers["x-request-id"]
        if reply.status_code >= 400:
            assert reply.json()["request_id"] == reply.headers["x-request-id"]
    assert len({reply.headers["x-request-id"] for reply in replies}) == len(replies)
    own = api.get("/livez", headers={"x-request-id": "robot-7.42"})
    assert own.headers["x-request-id"] == "robot-7.42"
    assert api.get("/livez", headers={"x-request-id": "a b\n"}).headers["x-request-id"] != "a b\n"


def test_a_damaged_request_is_refused_and_an_undamaged_one_gets_a_digest(driver: Driver) -> None:
    driver.start()
    path, body = f"{driver.path}/act", json.dumps({"episode": 0, "step": 0, "observation": state(0, 0)}).encode()
    claimed = digest(f"POST {path}".encode(), body)
    before = driver.get()
    for damaged in (body.replace(b"0.25", b"0.35"), body + b" "):
        reply = driver.api.post(path, content=damaged, headers={"skillet-digest": claimed.decode()})
        assert (reply.status_code, reply.json()["code"]) == (400, "damaged_request")
    assert driver.get() == before
    reply = driver.api.post(path, content=body, headers={"skillet-digest": claimed.decode()})
    assert reply.status_code == 200
    assert reply.headers["skillet-digest"].encode() == digest(claimed, f"POST {path}".encode(), b"200", reply.content)


def test_a_damaged_header_that_says_what_a_request_does_is_found(driver: Driver) -> None:
    asked = f"POST {driver.path}/episodes\nidempotency-key: robot-1\nskillet-deadline-ms: 500".encode()
    claimed, before = digest(asked, b"{}"), driver.get()
    sound = {"idempotency-key": "robot-1", "skillet-deadline-ms": "500", "skillet-digest": claimed.decode()}
    for damage in ({"idempotency-key": "robot-3"}, {"skillet-deadline-ms": "100"}, {"idempotency-kez": "robot-1", "idempotency-key": ""}):
        headers = {name: value for name, value in (sound | damage).items() if value}
        reply = driver.api.post(f"{driver.path}/episodes", content=b"{}", headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (400, "damaged_request")
    assert driver.get() == before
    refused = driver.api.post(f"{driver.path}/episodes", content=b"{}", headers=sound | {"idempotency-key": "robot\xb01".encode("latin-1")})
    assert refused.status_code in (400, 422)
    assert refused.headers["skillet-digest"].encode() != digest(claimed, asked, str(refused.status_code).encode(), refused.content)
    reply = driver.api.post(f"{driver.path}/episodes", content=b"{}", headers=sound)
    assert reply.status_code == 201
    assert reply.headers["skillet-digest"].encode() == digest(claimed, asked, b"201", reply.content)


def test_a_policy_that_gives_nan_sends_nothing(guarded, guarded_networks, monkeypatch, tmp_path: Path) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        monkeypatch.setattr(guarded_networks._decoder, "run_one", lambda *inputs, bad=bad: [np.array([bad, 0.0], np.float32)])
        driver = Driver(guarded)
        driver.start()
        reply = driver.post("act", episode=0, step=0, observation=state(0, 0))
        assert (reply.status_code, reply.json()["code"]) == (500, "policy_output_invalid")
