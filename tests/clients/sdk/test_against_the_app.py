"""The SDK against the real application and a real Redis, in one process."""

import numpy as np
import pytest

from clients.sdk import SkilletClient, Transition, errors
from tests.clients.in_process import InProcess


@pytest.fixture
def client(api):
    return SkilletClient(transport=InProcess(api))


def observation(step: int) -> np.ndarray:
    return np.array([step / 10, -step / 20, 0.25, 0.5], np.float32)


def run_episode(session, steps: int = 7, reward: float = 1.0):
    """One episode that terminates with a reward. Returns its actions."""
    session.start_episode()
    actions = [session.act(observation(0))]
    for step in range(1, steps + 1):
        last = step == steps
        actions.append(session.step(reward if last else 0.0, observation(step), last, False))
    return actions


def test_an_episode_gives_an_action_for_each_step_and_says_when_it_is_over(client):
    with client.open_session(seed=3, conditioning_episodes=1) as session:
        actions = run_episode(session, steps=7)
        assert [action.step for action in actions] == list(range(8))
        assert [action.skill_step for action in actions[:-1]] == [0, 1, 2, 3, 4, 0, 1]
        assert all(action.action.shape == (2,) and action.action.dtype == np.float32 for action in actions[:-1])
        assert [action.episode_over for action in actions] == [False] * 7 + [True]
        info = session.info()
        assert (info.episodes_completed, info.context_size, info.episode_open) == (1, 2, False)


def test_after_the_conditioning_episodes_the_task_posterior_has_left_the_prior_and_the_phase_is_adapted(client):
    with client.open_session(conditioning_episodes=2, finetuning=False) as session:
        assert session.task().context_size == 0
        np.testing.assert_array_equal(session.task().mean, [0, 0])
        phases = [session.start_episode().phase]
        for _ in range(2):
            run_episode(session)
            phases.append(session.start_episode().phase)
        assert phases == ["exploring", "exploring", "adapted"]
        posterior = session.task()
        assert posterior.context_size == 4
        assert (posterior.scale < 1).all()


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_every_lost_request_or_reply_is_made_good_and_changes_nothing(api, lost):
    """The same episodes twice: once undisturbed, once with the first attempt at every start, act and step lost."""
    tried = set()

    def first_attempt_is_lost(path, body):
        if not path.endswith(("/episodes", "/act", "/step")) or (path, body) in tried:
            return None
        tried.add((path, body))
        return lost

    def actions_of(client):
        client.bundles()
        with client.open_session(seed=5, conditioning_episodes=1) as session:
            return [action for _ in range(2) for action in run_episode(session)]

    calm = actions_of(SkilletClient(transport=InProcess(api)))
    rough = actions_of(SkilletClient(transport=InProcess(api, first_attempt_is_lost)))
    for calm_action, rough_action in zip(calm, rough, strict=True):
        assert (calm_action.episode, calm_action.step, calm_action.phase) == (rough_action.episode, rough_action.step, rough_action.phase)
        np.testing.assert_array_equal(calm_action.action, rough_action.action)
        assert rough_action.replayed == (lost == "reply")


def test_outcomes_posted_in_a_batch_after_acting_ahead_are_all_taken(client):
    with client.open_session() as session:
        session.start_episode()
        for step in range(6):
            session.act(observation(step))
        posted = session.post_transitions(Transition(0.0, observation(step + 1), False, step == 5) for step in range(6))
        assert (posted.accepted, posted.duplicates, posted.gaps, posted.episode_over) == (6, 0, (), True)


def test_a_batch_whose_reply_was_lost_counts_as_posted(api):
    lost_once = iter(["reply"])
    transport = InProcess(api, lambda path, body: next(lost_once, None) if path.endswith("/transitions") else None)
    with SkilletClient(transport=transport).open_session() as session:
        session.start_episode()
        session.act(observation(0))
        assert session.post_transitions([Transition(0.0, observation(1), True, False)]).duplicates == 1
        assert session.info().episodes_completed == 1


def test_a_reward_may_follow_its_transition(client):
    with client.open_session() as session:
        session.start_episode()
        session.act(observation(0))
        session.step(None, observation(1), False, False)
        assert session.step(None, observation(2), True, False).episode_over
        assert session.info().pending_rewards == (0, 1)
        assert session.post_rewards({1: 1.0}).pending == (0,)
        assert session.post_rewards({0: 0.5, 1: 1.0}).duplicates == 1
        assert session.info().episodes_completed == 1


def test_another_process_attaches_by_id_and_goes_on(client, api):
    session = client.open_session(seed=11)
    session.start_episode()
    session.act(observation(0))
    session.step(0.0, observation(1), False, False)
    other = SkilletClient(transport=InProcess(api)).session(session.id)
    action = other.step(0.5, observation(2), False, False)
    assert (action.episode, action.step) == (0, 2)


@pytest.mark.parametrize("posted", [0, 1, 3])
def test_another_process_attaches_and_reports_the_outcomes_that_the_service_has_not(client, api, posted):
    session = client.open_session(seed=11)
    session.start_episode()
    for step in range(3):
        session.act(observation(step))
    if posted:
        session.post_transitions(Transition(0.25, observation(step + 1), False, False) for step in range(posted))
    other = SkilletClient(transport=InProcess(api)).session(session.id)
    if posted < 3:
        rest = other.post_transitions(Transition(0.5, observation(step + 1), False, False) for step in range(posted, 3))
        assert (rest.accepted, rest.duplicates, rest.gaps) == (3 - posted, 0, ())
    other.act(observation(3))
    last = other.step(1.0, observation(4), True, False)
    (record,) = api.app.state.parts.store.episodes(api.app.state.parts.store.load(session.id).keys)
    assert (last.episode_over, record.steps, record.episode_return) == (True, 4, 1.0 + 0.25 * posted + 0.5 * (3 - posted))


def test_the_learner_can_be_paused_and_resumed(client):
    with client.open_session() as session:
        assert session.pause().paused
        assert not session.resume().paused
        status = session.finetuning()
        assert (status.enabled, status.state, status.updates) == (True, "idle", 0)


def test_a_new_session_has_the_bundles_own_policy_and_nothing_to_go_back_to(client):
    with client.open_session() as session:
        policy = session.policy()
        assert (policy.current, [version.status for version in policy.versions]) == (0, ["published"])
        with pytest.raises(errors.UnknownVersion):
            session.rollback(3)


def test_a_forced_phase_holds_from_the_next_episode(client):
    with client.open_session(conditioning_episodes=5) as session:
        assert session.force_phase("adapted").forced_phase == "adapted"
        assert session.start_episode().phase == "adapted"
        session.force_phase(None)
        assert session.start_episode().phase == "exploring"


def test_starting_an_episode_says_which_one_it_ended(client):
    with client.open_session() as session:
        session.start_episode()
        session.act(observation(0))
        session.step(0.0, observation(1), False, False)
        ended = session.start_episode().ended_previous
        assert (ended.episode, ended.steps) == (0, 1)


def test_sessions_are_listed_and_a_closed_one_is_gone(client):
    ids = {client.open_session(seed=seed).id for seed in range(3)}
    assert {info.session_id for info in client.list_sessions(page_size=2)} == ids
    session = client.session(ids.pop())
    session.close()
    session.close()
    with pytest.raises(errors.SessionClosed):
        client.session(session.id)


def test_unknown_names_are_typed_errors_that_say_what_there_is(client):
    with pytest.raises(errors.UnknownBundle, match="tiny"):
        client.open_session("tinny")
    with pytest.raises(errors.UnknownSession):
        client.session("0" * 32)
    with pytest.raises(errors.InvalidRequest) as caught:
        client.open_session(seed=-1)
    assert caught.value.request_id


def test_the_bundles_and_readiness_are_told(client):
    assert [(bundle.name, bundle.env_id) for bundle in client.bundles()] == [("tiny", "Tiny-v0")]
    assert client.ready()


def test_the_service_refuses_what_the_local_check_would_have(client):
    with client.open_session() as session:
        episode = session.start_episode()
        with pytest.raises(errors.InvalidObservation) as caught:
            client.call("POST", f"/v1/sessions/{session.id}/act", {"episode": episode.episode, "step": 0, "observation": [0.0] * 5})
        assert caught.value.status == 422
