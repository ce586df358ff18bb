"""openpi's protocol while Redis loses what is saved, or only its answer: what is told again counts once."""

import numpy as np
import pytest
from redis.exceptions import ConnectionError

from tests.conftest import Driver, state
from tests.service.openpi_robot import connected, records_of, report, stored_of


@pytest.fixture
def robot(api):
    with connected(api, "?seed=7") as found:
        yield found


@pytest.fixture
def lossy(api, monkeypatch):
    """Says of the saves that follow, one after the other, whether Redis loses them (request), only its answers (reply), or nothing."""
    store, plan = api.app.state.parts.store, []
    send = store.send_saves

    def send_saves(saves):
        lost = plan.pop(0) if plan else None
        wait = list if lost == "request" else send(saves)

        def finish():
            done = wait()
            if lost is not None:
                raise ConnectionError("the connection to Redis is gone")
            return done

        return finish

    monkeypatch.setattr(store, "send_saves", send_saves)
    return plan.extend


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("newer", [False, True])
def test_after_a_failure_a_report_sent_again_counts_once_and_the_connection_goes_on(api, robot, lossy, lost, newer):
    over_rest = Driver(api)
    over_rest.start()
    over_rest.act(0, 0, state(0, 0))
    robot.infer(state(0, 0))
    robot.infer(state(0, 1), reward=0.5)
    over_rest.step(0, 0, state(0, 1), reward=0.5)
    lossy([lost])
    assert robot.refused(report(state(0, 2), reward=1.5))["status"] == 503
    again = state(0, 2.5) if newer else state(0, 2)
    wanted = over_rest.step(0, 1, again if lost == "request" else state(0, 2), reward=1.5)
    answer = robot.infer(again, reward=1.5)
    assert (answer["step"], answer["episode"]) == (2, 0)
    assert np.frombuffer(answer["actions"][b"data"], np.float32).tolist() == wanted["action"]
    for step in range(2, 7):
        robot.infer(state(0, step + 1), reward=0.25, terminated=step == 6)
        over_rest.step(0, step, state(0, step + 1), reward=0.25, terminated=step == 6)
    store = api.app.state.parts.store
    one, other = (store.load(each) for each in (robot.metadata["session_id"], over_rest.session["session_id"]))
    assert store.redis.get(one.keys.context) == store.redis.get(other.keys.context)
    assert store.episodes(one.keys) == store.episodes(other.keys)


def test_what_a_robot_reports_anew_after_a_failure_is_the_outcome_of_the_action_that_did_not_arrive(api, robot, lossy):
    robot.infer(state(0, 0))
    lossy(["reply", "reply"])
    assert robot.refused(report(state(0, 1), reward=0.5))["status"] == 503
    assert robot.refused(report(state(0, 2), reward=1.0))["status"] == 503
    assert robot.infer(state(0, 3), reward=1.0)["step"] == 2, "sent again after the second failure"
    assert stored_of(api, robot).episode_return == 1.5
    lossy(["reply"])
    assert robot.refused(report(state(0, 4)))["status"] == 503
    answer = robot.infer(state(0, 5), reward=2.0, terminated=True)
    assert (answer["episode_over"], answer["step"]) == (True, 4)
    session = stored_of(api, robot)
    assert (session.episode_return, session.outcome_step, session.episodes_completed) == (3.5, 4, 1)


@pytest.mark.parametrize("newer", [False, True])
def test_an_end_that_was_stored_and_not_answered_is_answered_or_the_next_episode_begins(api, robot, lossy, newer):
    robot.infer(state(0, 0))
    lossy(["reply"])
    assert robot.refused(report(state(0, 1), reward=1.0, terminated=True))["status"] == 503
    if newer:
        assert robot.infer(state(0, 2), reward=0.0, terminated=True)["episode_over"]
    answer = robot.infer(state(1, 0))
    assert (answer["episode"], answer["step"]) == (1, 0)
    session = stored_of(api, robot)
    assert session.episodes_completed == 1
    (record,) = api.app.state.parts.store.episodes(api.app.state.parts.store.load(session.session_id).keys)
    assert (record.steps, record.episode_return) == (1, 1.0)


@pytest.mark.parametrize("failures", [["request"], ["reply"], [None, "request"], [None, "reply"], [None, None, "reply"]])
def test_after_a_failure_a_reset_sent_again_counts_what_it_tells_once(api, robot, lossy, failures):
    robot.infer(state(0, 0))
    lossy(failures)
    again = {"reward": 1.0, "reset": True}
    assert robot.refused(report(state(1, 0), **again))["status"] == 503
    answer = robot.infer(state(1, 0), **again)
    assert (answer["step"], answer["ignored"]) == (0, [])
    (record,) = records_of(api, robot)
    assert (record.steps, record.episode_return) == (1, 1.0)


def test_a_report_that_was_stored_and_not_answered_counts_once_when_a_reset_tells_it_again(api, robot, lossy):
    robot.infer(state(0, 0))
    lossy(["reply"])
    assert robot.refused(report(state(0, 1), reward=1.0))["status"] == 503
    assert robot.infer(state(1, 0), reward=1.0, reset=True)["episode"] == 1
    (record,) = records_of(api, robot)
    assert (record.steps, record.episode_return) == (1, 1.0)


@pytest.mark.parametrize("failures", [["reply"], [None, "reply"], [None, None, "reply"]])
def test_an_episode_of_the_bundles_length_whose_end_was_not_answered_is_followed_by_the_next(api, robot, lossy, failures):
    for step in range(30):
        robot.infer(state(0, step))
    lossy(failures)
    assert robot.refused(report(state(0, 30)))["status"] == 503
    answer = robot.infer(state(0, 29.5))
    assert answer["step"] == 0
    assert robot.infer(state(1, 1))["step"] == 1
    assert stored_of(api, robot).episodes_completed == 1


def test_a_bad_observation_after_a_failure_is_refused_and_the_next_good_one_goes_on(robot, lossy):
    robot.infer(state(0, 0))
    lossy(["reply"])
    assert robot.refused(report(state(0, 1)))["status"] == 503
    assert robot.refused(report([0.0] * 3))["status"] == 422
    assert robot.infer(state(0, 1.5))["step"] == 1
    assert robot.infer(state(0, 2))["step"] == 2
