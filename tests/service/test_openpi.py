"""openpi's protocol: its own client from the package index against a running service, and what no good client sends."""

import json
import subprocess

import msgspec
import numpy as np
import pytest
from starlette.websockets import WebSocketDisconnect

from tests.conftest import Driver, state
from tests.own_venv import python_with
from tests.service.openpi_robot import connected, packed, records_of, report, stored_of
from tests.service.running import Remote, RunningService

CLIENT = """
import json, sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

address, port = sys.argv[1], int(sys.argv[2]) or None
policy = WebsocketClientPolicy(address, port, api_key="unused")
broker = ActionChunkBroker(policy, action_horizon=1)
observations = [np.array([0.0, step / 10, -step / 20, 0.25]) for step in range(8)]
more = {"prompt": "go", "observation/image": np.zeros((8, 8, 3), np.uint8)}
answers = [broker.infer({"observation/state": each, **more}) for each in observations]
ended = policy.infer({"state": observations[0].astype(np.float32), "reward": np.float32(1.0), "terminated": np.bool_(True)})
try:
    policy.infer({"state": np.zeros(3)})
    error = None
except RuntimeError as refused:
    error = str(refused)
after = policy.infer({"state": observations[0]})
print(json.dumps({
    "metadata": policy.get_server_metadata(),
    "actions": [answer["actions"].tolist() for answer in answers],
    "dtype": str(answers[0]["actions"].dtype),
    "timing": answers[0]["server_timing"],
    "ignored": answers[0]["ignored"],
    "ended": [list(ended["actions"].shape), ended["episode_over"]],
    "error": error,
    "after": after["episode"],
}))
"""


@pytest.fixture(scope="session")
def openpi_python(tmp_path_factory):
    return python_with(
        tmp_path_factory.mktemp("openpi") / "venv", "openpi-client", "typing-extensions"
    )  # it imports the second without asking for it


def test_the_published_client_gets_the_actions_that_rest_gives(openpi_python, tiny_bundle, tmp_path):
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        address = f"ws://127.0.0.1:{service.pool.port}/openpi?seed=7"
        command = [openpi_python, "-c", CLIENT, address, "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        over_rest = Driver(Remote(service))
        over_rest.start()
        wanted = [over_rest.act(0, 0, state(0, 0))] + [over_rest.step(0, step, state(0, step + 1)) for step in range(7)]
        assert found["actions"] == [each["action"] for each in wanted]
        session = service.get(f"/v1/sessions/{found['metadata']['session_id']}").json()
        by_port = subprocess.run(
            [openpi_python, "-c", CLIENT, "127.0.0.1", str(service.pool.port)], capture_output=True, text=True, timeout=120, check=False
        )
        assert by_port.returncode == 0, by_port.stderr
    assert found["metadata"]["action"]["names"] == ["ax", "ay"]
    assert (found["dtype"], found["ignored"], found["after"]) == ("float32", ["observation/image", "prompt"], 1)
    assert found["timing"]["infer_ms"] > 0
    assert found["ended"] == [[0, 2], True]
    assert "expected 4 numbers, got 3" in found["error"]
    assert (session["episodes_completed"], session["seed"]) == (1, 7)


@pytest.fixture
def robot(api):
    with connected(api, "?seed=7") as found:
        yield found


def test_a_client_of_observations_alone_has_episodes_of_the_bundles_length_and_always_an_action(api, robot):
    answers = [robot.infer(state(0, step % 30)) for step in range(62)]
    assert all(answer["actions"][b"shape"] == [1, 2] for answer in answers)
    assert [answer["episode"] for answer in answers] == [0] * 30 + [1] * 30 + [2] * 2
    session = api.get(f"/v1/sessions/{robot.metadata['session_id']}").json()
    assert session["episodes_completed"] == 2


def test_rewards_and_ends_in_the_observation_are_those_of_the_last_action(api, robot):
    over_rest = Driver(api)
    robot.infer(state(0, 0))
    for step in range(5):
        robot.infer(state(0, step + 1), reward=0.5, terminated=step == 4)
    over_rest.start()
    over_rest.act(0, 0, state(0, 0))
    for step in range(5):
        over_rest.step(0, step, state(0, step + 1), reward=0.5, terminated=step == 4)
    store = api.app.state.parts.store
    one, other = (store.load(each) for each in (robot.metadata["session_id"], over_rest.session["session_id"]))
    assert store.redis.get(one.keys.context) == store.redis.get(other.keys.context)
    assert robot.infer(state(1, 0))["episode"] == 1


def test_reset_begins_another_episode(robot):
    robot.infer(state(0, 0))
    robot.infer(state(0, 1))
    answer = robot.infer(state(1, 0), reset=True)
    assert (answer["episode"], answer["step"]) == (1, 0)


@pytest.mark.parametrize("terminated", [True, False])
def test_what_a_reset_tells_of_the_last_action_is_stored_before_another_episode_begins(api, robot, terminated):
    robot.infer(state(0, 0))
    robot.infer(state(0, 1), reward=0.5)
    answer = robot.infer(state(1, 0), reward=1.0, terminated=terminated, reset=True)
    assert (answer["episode"], answer["step"], answer["ignored"]) == (1, 0, [])
    (record,) = records_of(api, robot)
    assert (record.steps, record.episode_return) == (2, 1.5)
    store, layout = api.app.state.parts.store, api.app.state.parts.bundles["tiny"].layout
    (row,) = store.context(store.load(robot.metadata["session_id"]).keys, 0, 1, layout.width)
    assert row[layout.terminated] == terminated
    np.testing.assert_allclose(row[layout.next_state], state(0, 1), err_msg="the next episode's first is not where the action led")


def test_a_reset_whose_state_is_refused_stores_nothing(api, robot):
    robot.infer(state(0, 0))
    assert robot.refused(report([0.0] * 3, reward=1.0, reset=True))["status"] == 422
    assert stored_of(api, robot).outcome_step == 0


def test_what_is_told_of_an_action_that_there_was_not_is_named_as_ignored(api, robot):
    assert robot.infer(state(0, 0), reward=0.5, truncated=True, image=1)["ignored"] == ["image", "reward", "truncated"]
    assert robot.infer(state(0, 1), reward=1.0, terminated=True)["ignored"] == []
    assert robot.infer(state(1, 0), reward=1.0, reset=True)["ignored"] == ["reward"]
    assert robot.infer(state(2, 0), reward=0.0, terminated=False, reset=True)["ignored"] == []
    api.post(f"/v1/sessions/{robot.metadata['session_id']}/episodes/end")
    answer = robot.infer(state(3, 0), reward=1.0, reset=True)
    assert (answer["episode"], answer["ignored"]) == (3, ["reward"]), "somebody else ended the episode"


def test_a_session_that_shares_its_skills_tells_them(api):
    with connected(api, "?seed=7&share_skills=true") as robot:
        skills = [robot.infer(state(0, step))["skill"] for step in range(6)]
    assert [None if skill is None else len(skill) for skill in skills] == [3, None, None, None, None, 3]


def test_a_session_that_is_there_is_gone_on_with(api):
    driver = Driver(api)
    driver.run_episode()
    with connected(api, f"?session_id={driver.session['session_id']}") as robot:
        assert robot.metadata["session_id"] == driver.session["session_id"]
        assert robot.infer(state(1, 0))["episode"] == 1


GOOD = packed(np.zeros(4))
BAD = {
    "no msgpack": b"\xc1",
    "nothing": b"",
    "truncated": msgspec.msgpack.encode({"state": GOOD})[:-3],
    "a list": [1, 2],
    "names that are no text": {1: 2},
    "no state": {"image": GOOD},
    "too short": {"state": packed(np.zeros(3))},
    "a matrix": {"state": packed(np.zeros((4, 1)))},
    "not finite": {"state": packed(np.array([0.0, np.nan, 0.0, 0.0]))},
    "not finite in a list": {"state": [0.0, float("inf"), 0.0, 0.0]},
    "no numbers": {"state": ["a", "b", "c", "d"]},
    "truth values": {"state": [True] * 4},
    "a number above float64": {"state": [2**63, 1e308, 0, 0]},
    "objects": {"state": {**GOOD, b"dtype": "|O"}},
    "structures": {"state": {**GOOD, b"dtype": "V8"}},
    "text": {"state": {**GOOD, b"dtype": "<U8"}},
    "complex numbers": {"state": {**GOOD, b"dtype": "<c16"}},
    "no dtype": {"state": {key: value for key, value in GOOD.items() if key != b"dtype"}},
    "a shape that lies": {"state": {**GOOD, b"shape": [5]}},
    "a huge shape": {"state": {**GOOD, b"shape": [2**30, 2**30, 2**30]}},
    "a negative shape": {"state": {**GOOD, b"shape": [-4]}},
    "a shape of truth values": {"state": {**GOOD, b"shape": [True]}},
    "data that is text": {"state": {**GOOD, b"data": "x" * 32}},
    "a reward that is not finite": {"state": GOOD, "reward": float("nan")},
    "a reward that is an array": {"state": GOOD, "reward": packed(np.zeros(2))},
    "a reward that is text": {"state": GOOD, "reward": "1"},
    "an end that is a number": {"state": GOOD, "terminated": 1},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_observations_are_refused_as_text_without_effect_and_the_connection_goes_on(robot, name):
    robot.infer(state(0, 0))
    problem = robot.refused(BAD[name])
    assert problem["status"] == 422
    assert problem["expected"]
    answer = robot.infer(state(0, 1))
    assert (answer["episode"], answer["step"]) == (0, 1)


@pytest.mark.parametrize(("query", "status"), [("?session_id=x", 404), ("?seed=-1", 422), ("?sed=1", 422), ("?bundle=other", 404)])
def test_an_address_that_names_no_session_is_refused_and_closed(api, query, status):
    with api.websocket_connect(f"/openpi{query}") as socket:
        assert json.loads(socket.receive_text())["status"] == status
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_bytes()
    assert closed.value.code == 4000 + status


def test_text_and_pages_of_other_sites_are_turned_away(api, robot):
    robot.socket.send_text("hello")
    with pytest.raises(WebSocketDisconnect) as closed:
        robot.socket.receive_bytes()
    assert closed.value.code == 1003
    with pytest.raises(WebSocketDisconnect), api.websocket_connect("/openpi", headers={"origin": "http://elsewhere.example"}):
        pass
