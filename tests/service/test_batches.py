"""Many sessions in one request, beside the same calls alone."""

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient

from clients.sdk import Reply, ServiceError, SessionGroup, SkilletClient, Transition, errors
from service.app import create_app
from tests.clients.in_process import InProcess
from tests.conftest import Driver, state, transition


def drivers(api, count, **options):
    found = [Driver(api, seed=seed, **options) for seed in range(count)]
    for driver in found:
        driver.start()
    return found


def items(group, step, **outcome):
    """The outcome of a step for each session."""
    return [{**transition(0, step, state(0, step + 1), **outcome), "session_id": driver.session["session_id"]} for driver in group]


def acts(group, step=0):
    return [{"session_id": driver.session["session_id"], "episode": 0, "step": step, "observation": state(0, step)} for driver in group]


def post(api, path, batch):
    response = api.post(path, json={"items": batch})
    assert response.status_code == 200, response.text
    return response.json()["results"]


def bare(problem):
    return {**problem, "request_id": None}


def test_each_result_is_that_of_the_call_alone_to_the_bit(api):
    together, alone = (drivers(api, 32, share_skills=True) for _ in range(2))
    results = post(api, "/v1/act", acts(together))
    assert [result["action"] for result in results] == [driver.act(0, 0, state(0, 0)) for driver in alone]
    for step in range(7):
        results = post(api, "/v1/step", items(together, step, terminated=step == 6))
        assert [result["action"] for result in results] == [
            driver.step(0, step, state(0, step + 1), terminated=step == 6) for driver in alone
        ]
        assert {result["status"] for result in results} == {200}
    assert all(driver.get()["context_size"] == 2 for driver in together)


def test_a_machine_whose_decoder_gives_other_bits_in_batches_decodes_one_by_one(api, tiny_networks, monkeypatch):
    alone = [driver.act(0, 0, state(0, 0)) for driver in drivers(api, 4)]
    monkeypatch.setattr(tiny_networks, "_decodes_alike", False)
    monkeypatch.setattr(tiny_networks._decoder, "run", lambda *inputs: pytest.fail("a batch"))
    assert [result["action"] for result in post(api, "/v1/act", acts(drivers(api, 4)))] == alone


def test_a_batch_sent_again_has_one_effect(api):
    group = drivers(api, 3)
    post(api, "/v1/act", acts(group))
    first = post(api, "/v1/step", items(group, 0))
    again = post(api, "/v1/step", items(group, 0))
    assert [{**result["action"], "replayed": False} for result in again] == [result["action"] for result in first]
    assert all(result["action"]["replayed"] for result in again)


def test_what_one_session_is_refused_is_told_in_its_result_and_stops_no_other(api):
    group = drivers(api, 6)
    post(api, "/v1/act", acts(group))
    batch = items(group, 0)
    batch[0]["session_id"] = "0" * 32
    batch[1]["session_id"] = "no id"
    batch[2]["step"] = 4
    batch[3]["next_observation"] = [1.0]
    assert api.delete(group[4].path).status_code == 200
    results = post(api, "/v1/step", batch)
    assert [result["status"] for result in results] == [404, 404, 409, 422, 410, 200]
    codes = [result["problem"] and result["problem"]["code"] for result in results]
    assert codes == ["unknown_session", "unknown_session", "step_not_acted", "invalid_observation", "session_closed", None]
    alone = [api.post(f"{group[index].path}/step", json={k: v for k, v in batch[index].items() if k != "session_id"}) for index in (2, 3)]
    assert [bare(results[index]["problem"]) for index in (2, 3)] == [bare(response.json()) for response in alone]
    assert [driver.get()["step"] for driver in (group[2], group[3], group[5])] == [1, 1, 2]


def test_two_items_of_one_session_are_done_in_their_order(api):
    (driver,) = drivers(api, 1)
    post(api, "/v1/act", acts([driver]))
    results = post(api, "/v1/step", [*items([driver], 0), *items([driver], 1)])
    assert [result["action"]["step"] for result in results] == [1, 2]


def test_a_session_that_another_process_changed_is_read_again(api, settings, tiny_networks):
    group = drivers(api, 3)
    post(api, "/v1/act", acts(group))
    with TestClient(create_app(settings, {"tiny": tiny_networks})) as other:
        assert other.post(f"{group[1].path}/step", json=transition(0, 0, state(0, 1))).status_code == 200
        results = post(api, "/v1/step", items(group, 0))
        assert [result["action"]["replayed"] for result in results] == [False, True, False]


def test_the_script_is_loaded_again_when_redis_has_forgotten_it(api):
    group = drivers(api, 3)
    api.app.state.parts.store.redis.script_flush()
    assert [result["status"] for result in post(api, "/v1/act", acts(group))] == [200] * 3


def test_an_action_that_is_not_finite_is_told_in_its_own_result(api, tiny_networks, monkeypatch):
    group = drivers(api, 2)
    monkeypatch.setattr(tiny_networks._decoder, "run", lambda states, skills: [np.array([[np.nan, 0.0], [0.5, 0.5]], np.float32)])
    monkeypatch.setattr(tiny_networks._decoder, "run_one", lambda *inputs: [np.array([np.nan, 0.0], np.float32)])
    results = post(api, "/v1/act", acts(group))
    assert [result["status"] for result in results] == [500, 200]
    assert results[0]["problem"]["code"] == "policy_output_invalid"


@pytest.mark.parametrize("path", ["/v1/act", "/v1/step"])
@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": [{}]}, {"items": [{}] * 257}, {"items": 3}, {"items": [1]}, [], {"more": 1}])
def test_a_body_that_is_no_batch_is_refused_as_a_whole(api, path, body):
    refused = api.post(path, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


def test_the_sdk_steps_a_group_and_tells_who_was_refused(api):
    client = SkilletClient(transport=InProcess(api))
    group = SessionGroup(client, [client.open_session(seed=seed) for seed in range(3)])
    twin = client.open_session(seed=1)
    for session in (*group.sessions, twin):
        session.start_episode()
    first = group.act({index: state(0, 0) for index in range(3)})
    np.testing.assert_array_equal(first[1].action, twin.act(state(0, 0)).action)
    client.session(group.sessions[0].id).close()
    results = group.step({index: Transition(0.0, state(0, 1), index == 2, False) for index in range(3)})
    assert isinstance(results[0], errors.SessionClosed)
    assert isinstance(results[0], ServiceError)
    np.testing.assert_array_equal(results[1].action, twin.step(0.0, state(0, 1), False, False).action)
    assert results[2].episode_over
    assert group.step({1: Transition(0.0, state(0, 2), False, False)})[1].step == 2


def test_what_the_sdk_finds_wrong_of_one_robot_stops_none_of_the_others(api):
    asked = []
    client = SkilletClient(transport=InProcess(api, lambda path, body: asked.append(path)))
    group = SessionGroup(client, [client.open_session(seed=seed) for seed in range(4)])
    twin = client.open_session(seed=2)
    for session in (*group.sessions[:3], twin):
        session.start_episode()
    first = group.act({0: state(0, 0)[:3], 1: [0.0, float("nan"), 10**400, 0.0], 3: state(0, 0), 2: state(0, 0)})
    assert list(first) == [0, 1, 3, 2]
    assert isinstance(first[0], errors.InvalidObservation)
    assert isinstance(first[1], errors.InvalidObservation)
    assert isinstance(first[3], errors.EpisodeState)
    np.testing.assert_array_equal(first[2].action, twin.act(state(0, 0)).action)
    results = group.step({0: Transition(0.0, state(0, 1), False, False), 2: Transition(0.5, state(0, 1), False, False)})
    assert isinstance(results[0], errors.EpisodeState), "it has no action yet"
    np.testing.assert_array_equal(results[2].action, twin.step(0.5, state(0, 1), False, False).action)
    before = len(asked)
    left = group.step({2: Transition("much", state(0, 2), False, False), 3: Transition(0.0, state(0, 1), False, False)})
    assert [type(left[index]) for index in (2, 3)] == [errors.InvalidRequest, errors.EpisodeState]
    assert group.act({}) == {}
    assert len(asked) == before, "nobody was left to ask for"
    assert group.act({0: state(0, 0)})[0].step == 0, "a refused observation changes nothing"
    with pytest.raises(IndexError):
        group.act({4: state(0, 0)})


class Spoiling(InProcess):
    """A service whose first robot of each batch gets an action that no robot should follow."""

    def request(self, method, path, body, headers, timeout_s):
        reply = super().request(method, path, body, headers, timeout_s)
        content = json.loads(reply.body)
        if path in ("/v1/act", "/v1/step"):
            content["results"][0]["action"]["action"] = self.spoilt
        return Reply(reply.status, {}, json.dumps(content).encode())


@pytest.mark.parametrize(("spoilt", "error"), [([0.0] * 3, errors.UnsafeAction), (["left", "right"], errors.UnexpectedReply)])
def test_an_action_that_no_robot_should_follow_does_not_take_the_others_from_them(api, spoilt, error):
    transport = Spoiling(api)
    transport.spoilt = spoilt
    client = SkilletClient(transport=transport)
    group = SessionGroup(client, [client.open_session(seed=seed) for seed in range(2)])
    for session in group.sessions:
        session.start_episode()
    first = group.act({0: state(0, 0), 1: state(0, 0)})
    assert isinstance(first[0], error)
    assert first[1].step == 0
    following = group.step({index: Transition(0.0, state(0, 1), False, False) for index in (1, 0)})
    assert isinstance(following[0], errors.EpisodeState), "it has no action that it could have followed"


class Answering(InProcess):
    """A service that answers batches with something else."""

    answer = None

    def request(self, method, path, body, headers, timeout_s):
        reply = super().request(method, path, body, headers, timeout_s)
        return Reply(reply.status, {}, json.dumps(self.answer).encode() if path == "/v1/act" else reply.body)


@pytest.mark.parametrize("answer", [{}, [], {"results": []}, {"results": [{"action": None}]}, {"results": "none"}])
def test_a_reply_that_is_no_batch_of_answers_is_said_to_be_unexpected(api, answer):
    transport = Answering(api)
    transport.answer = answer
    client = SkilletClient(transport=transport)
    group = SessionGroup(client, [client.open_session()])
    group.sessions[0].start_episode()
    with pytest.raises(errors.UnexpectedReply):
        group.act({0: state(0, 0)})
