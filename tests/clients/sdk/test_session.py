"""The session's numbering, its local checks, and what it does when replies get lost."""

import numpy as np
import pytest

from clients.sdk import Action, EpisodeState, InvalidObservation, Transition, UnexpectedReply, errors
from clients.sdk.models import FinetuningStatus, PolicyVersions, TaskPosterior
from tests.clients.servers import ACTION, EPISODE, SESSION, cut_in_body, hang_up, http_server, lists, refuses, says

OPENED, STARTED = says(201, SESSION), says(201, EPISODE)
OVER = {**ACTION, "step": 1, "action": None, "skill_step": None, "episode_over": True}
RESULT = {"episode": 0, "step": 0, "status": "stored", "code": None, "detail": None}
POSTED = {
    "accepted": 1,
    "duplicates": 0,
    "refused": 0,
    "results": [RESULT],
    "gaps": [],
    "context_size": 0,
    "task_version": 0,
    "episode_over": False,
}


def test_the_loop_numbers_steps_and_ends_with_the_episode(connect):
    with http_server(OPENED, STARTED, says(200, ACTION), says(200, {**ACTION, "step": 1}), says(200, OVER)) as (url, server):
        session = connect(url).open_session("tiny", seed=5)
        session.start_episode()
        first = session.act(np.arange(4, dtype=np.float32))
        session.step(0.5, [1, 2, 3, 4], False, False)
        last = session.step(1.0, [5, 6, 7, 8], True, False)
    assert isinstance(first, Action)
    np.testing.assert_array_equal(first.action, np.array([0.25, -0.5], np.float32))
    assert last.episode_over
    assert last.action is None
    bodies = [body for _, _, body in server.seen]
    assert bodies[0]["seed"] == 5
    assert bodies[2] == {"episode": 0, "step": 0, "observation": [0, 1, 2, 3]}
    assert bodies[3] == {"episode": 0, "step": 0, "reward": 0.5, "next_observation": [1, 2, 3, 4], "terminated": False, "truncated": False}
    assert bodies[4]["step"] == 1
    assert bodies[4]["terminated"] is True


def test_a_step_whose_reply_was_lost_is_sent_again_under_the_same_number(connect):
    with http_server(OPENED, STARTED, says(200, ACTION), cut_in_body, says(200, {**ACTION, "step": 1, "replayed": True})) as (url, server):
        session = connect(url).open_session()
        session.start_episode()
        session.act(np.zeros(4))
        assert session.step(0.0, np.zeros(4), False, False).replayed
    assert server.seen[3] == server.seen[4]


def keys_of(server):
    return [headers.get("idempotency-key") for headers in server.headers_seen]


def test_opening_and_starting_are_sent_again_under_the_same_key(connect):
    with http_server(lists("tiny"), hang_up, OPENED, hang_up, STARTED, STARTED) as (url, server):
        client = connect(url)
        client.bundles()
        session = client.open_session()
        session.start_episode()
        session.start_episode()
    opened, opened_again, started, started_again, another = keys_of(server)[1:]
    assert opened == opened_again
    assert started == started_again
    assert len({opened, started, another, None}) == 4


def test_a_start_that_was_given_up_goes_on_under_its_key_when_it_is_called_again(connect):
    with http_server(OPENED, hang_up, STARTED) as (url, server):
        session = connect(url, retry_for_s=0.0).open_session()
        with pytest.raises(errors.ConnectionLost):
            session.start_episode()
        assert session.start_episode().episode == 0
    assert keys_of(server)[1] == keys_of(server)[2]


def test_transitions_that_had_come_through_before_their_reply_was_lost_count_as_posted(connect):
    had = {**POSTED, "accepted": 0, "duplicates": 1, "results": [{**RESULT, "status": "duplicate"}]}
    with http_server(OPENED, STARTED, says(200, ACTION), cut_in_body, says(200, had), says(200, POSTED)) as (url, server):
        session = connect(url).open_session()
        session.start_episode()
        session.act(np.zeros(4))
        assert session.post_transitions([Transition(0.0, np.zeros(4), False, False)]).duplicates == 1
        session.post_transitions([Transition(None, np.ones(4), False, False)])
    assert server.seen[-1][2]["transitions"][0]["step"] == 1
    assert server.seen[-1][2]["transitions"][0]["reward"] is None


def test_a_refused_item_is_an_error_that_names_it(connect):
    refused = {**RESULT, "status": "refused", "code": "step_not_acted", "detail": "step 0 was never acted"}
    with http_server(OPENED, STARTED, says(200, {**POSTED, "refused": 1, "results": [refused]})) as (url, _):
        session = connect(url).open_session()
        session.start_episode()
        with pytest.raises(errors.ItemsRefused, match="step 0 was never acted") as caught:
            session.post_transitions([Transition(0.0, np.zeros(4), False, False)])
    assert caught.value.results[0].code == "step_not_acted"


def test_acting_may_run_ahead_of_its_outcomes_but_step_may_not(connect):
    with http_server(OPENED, STARTED, says(200, ACTION), says(200, {**ACTION, "step": 1})) as (url, server):
        session = connect(url).open_session()
        session.start_episode()
        with pytest.raises(EpisodeState, match="call act first"):
            session.step(0.0, np.zeros(4), False, False)
        session.act(np.zeros(4))
        session.act(np.ones(4))
        with pytest.raises(EpisodeState, match="2 actions have no outcome"):
            session.step(0.0, np.zeros(4), False, False)
    assert [body["step"] for _, path, body in server.seen if path.endswith("/act")] == [0, 1]


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(5), r"shape \[5\]"),
        (np.zeros((1, 4)), r"shape \[1, 4\]"),
        ([0, float("nan"), 0, 0], r"'x': nan"),
        ([0, 0, 0, float("inf")], r"'z': inf"),
        (["a", 0, 0, 0], "no vector of numbers"),
        (None, "shape"),
    ],
)
def test_an_observation_that_does_not_fit_the_spec_is_not_sent(connect, observation, message):
    with http_server(OPENED, STARTED) as (url, server):
        session = connect(url).open_session()
        session.start_episode()
        with pytest.raises(InvalidObservation, match=message) as caught:
            session.act(observation)
    assert caught.value.expected == "4 finite numbers: w [m], x [m], y [m/s], z [rad]"
    assert len(server.seen) == 2


def test_a_reward_that_is_not_finite_is_not_sent(connect):
    with http_server(OPENED, STARTED, says(200, ACTION)) as (url, server):
        session = connect(url).open_session()
        session.start_episode()
        session.act(np.zeros(4))
        with pytest.raises(errors.InvalidRequest, match="finite"):
            session.step(float("nan"), np.zeros(4), False, False)
    assert len(server.seen) == 3


def test_numbers_of_numpy_are_sent_as_they_are_meant(connect):
    with http_server(OPENED, STARTED, says(200, ACTION), says(200, {**POSTED, "pending": []})) as (url, server):
        session = connect(url).open_session(seed=np.int64(3), finetuning=np.bool_(False), conditioning_episodes=np.uint8(2))
        session.start_episode()
        session.act(np.zeros(4))
        session.post_rewards({np.int64(0): np.float32(0.5)})
    assert [server.seen[0][2][name] for name in ("seed", "finetuning", "conditioning_episodes")] == [3, False, 2]
    assert server.seen[3][2] == {"rewards": [{"episode": 0, "step": 0, "reward": 0.5}]}


def test_what_cannot_be_sent_is_refused_before_it_is(connect):
    with http_server(OPENED) as (url, server):
        client = connect(url)
        with pytest.raises(errors.InvalidRequest, match="cannot be sent") as caught:
            client.open_session(seed=1.5j)
        assert caught.value.received == "1.5j"
        session = client.open_session()
        for wait_s in (float("nan"), float("inf"), -1.0):
            with pytest.raises(errors.InvalidRequest, match="wait_s"):
                session.finetuning(wait_s=wait_s)
    assert len(server.seen) == 1


def test_acting_without_an_episode_is_refused_before_anything_is_sent(connect):
    with http_server(OPENED) as (url, server), pytest.raises(EpisodeState, match="start_episode"):
        connect(url).open_session().act(np.zeros(4))
    assert len(server.seen) == 1


def test_leaving_the_block_closes_the_session_and_lets_its_error_through(connect):
    with http_server(OPENED, says(200, {**SESSION, "closed": True})) as (url, server), connect(url).open_session():
        pass
    assert server.seen[1][:2] == ("DELETE", "/v1/sessions/s-1")
    with http_server(OPENED, refuses(500, "internal_error")) as (url, _), pytest.raises(ZeroDivisionError), connect(url).open_session():
        _ = 1 / 0


def test_closing_a_session_that_is_closed_already_is_no_error(connect):
    with http_server(OPENED, refuses(410, "session_closed")) as (url, server):
        connect(url).open_session().close()
    assert len(server.seen) == 2


def test_attaching_goes_on_where_the_session_stands(connect):
    stands = {**SESSION, "episode": 6, "episode_open": True, "step": 3, "gaps": [2]}
    with http_server(says(200, stands), says(200, {**ACTION, "episode": 6, "step": 3})) as (url, server):
        connect(url).session("s-1").step(0.0, np.zeros(4), False, False)
    assert (server.seen[1][2]["episode"], server.seen[1][2]["step"]) == (6, 2)


def test_a_session_id_cannot_lead_to_another_path(connect):
    with http_server(refuses(404, "unknown_session")) as (url, server), pytest.raises(errors.UnknownSession):
        connect(url).session("../bundles?x=1")
    assert server.seen[0][1] == "/v1/sessions/..%2Fbundles%3Fx%3D1"


def test_what_is_known_about_task_learner_and_policy_comes_as_typed_values(connect):
    task = {"version": 2, "mean": [0.5, 1.5], "scale": [0.1, 0.2], "context_size": 9, "phase": "adapted", "new_field": 1}
    learner = {
        "enabled": True,
        "paused": False,
        "state": "running",
        "episodes_completed": 3,
        "episodes_learned": 2,
        "updates": 40,
        "losses": {"actor": 0.5},
        "policy_version": 1,
        "error": None,
    }
    versions = {
        "current": 1,
        "versions": [{"version": 1, "created_at": 1.5, "status": "current", "reason": "learned", "episode": 2, "metrics": {}}],
    }
    with http_server(OPENED, says(200, task), says(200, learner), says(200, versions)) as (url, server):
        session = connect(url).open_session()
        posterior, status, policy = session.task(), session.finetuning(wait_s=1.5), session.policy()
    assert isinstance(posterior, TaskPosterior)
    np.testing.assert_allclose(posterior.mean, [0.5, 1.5])
    assert isinstance(status, FinetuningStatus)
    assert status.losses == {"actor": 0.5}
    assert isinstance(policy, PolicyVersions)
    assert policy.versions[0].reason == "learned"
    assert server.seen[2][1] == "/v1/sessions/s-1/finetuning?wait_s=1.5"


def test_a_reply_without_a_field_names_it_and_suggests_versions(connect):
    with (
        http_server(OPENED, says(200, {"mean": [], "scale": []})) as (url, _),
        pytest.raises(UnexpectedReply, match=r"no 'version'.*update one of them"),
    ):
        connect(url).open_session().task()


def test_every_page_of_sessions_is_listed(connect):
    bare = {key: value for key, value in SESSION.items() if key != "specs"}
    pages = [
        {"sessions": [{**bare, "session_id": "a"}], "next_cursor": "c/1"},
        {"sessions": [{**bare, "session_id": "b"}], "next_cursor": None},
    ]
    with http_server(*(says(200, page) for page in pages)) as (url, server):
        assert [info.session_id for info in connect(url).list_sessions(page_size=1)] == ["a", "b"]
    assert server.seen[1][1] == "/v1/sessions?limit=1&cursor=c%2F1"
