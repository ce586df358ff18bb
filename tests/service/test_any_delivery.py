"""The rules of transitions and rewards without HTTP, against every order of delivery that Hypothesis finds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import acting, recording, schemas
from service.folding import settle
from service.policies import Networks
from service.session_errors import Conflict, NoOpenEpisode
from service.session_state import Changes, Session, task_prior
from service.sessions import new_session_id
from service.tokens import NOBODY
from tests.conftest import state
from tests.service.deliveries import STEPS, outcome_of, reward_of
from training.contract.context import Floats
from training.contract.exploration import Exploration, Phase

WINDOW = 6


def fresh(networks: Networks) -> Session:
    session = Session(new_session_id(NOBODY), "tiny", "", 7, 20, Exploration.SWITCHING, True, False, 60, 0.0, 0.0)
    acting.begin_episode(session, Phase.EXPLORING, task_prior(networks.spec.task_embedding_dim))
    for step in range(STEPS):
        acting.act(session, step, np.array(state(0, step), np.float32), networks=networks, policy=networks.meta_policy, max_ahead=99)
    return session


def deliver(session: Session, changes: Changes, networks: Networks, step: int, *, with_reward: bool) -> str:
    item = schemas.Transition(**outcome_of(step, with_reward=with_reward))
    outcome = recording.check_outcome(item, networks, "$")
    try:
        return recording.record(session, [(item, outcome)], changes, networks, WINDOW)[0].status
    except Conflict:
        return "refused"


deliveries = st.lists(st.tuples(st.sampled_from(["transition", "bare transition", "reward"]), st.integers(0, STEPS - 1)), max_size=80)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deliveries=deliveries)
def test_any_delivery_followed_by_what_was_missing_gives_the_undisturbed_rows(tiny_networks: Networks, deliveries: Any) -> None:
    session, changes, twin, twin_changes = fresh(tiny_networks), Changes(), fresh(tiny_networks), Changes()
    for step in range(STEPS):
        assert deliver(twin, twin_changes, tiny_networks, step, with_reward=True) == "stored"
    stored: set[int] = set()
    for kind, step in deliveries:
        if kind == "reward":
            late(session, changes, tiny_networks, step)
            continue
        status = deliver(session, changes, tiny_networks, step, with_reward=kind == "transition")
        expected = "duplicate" if step in stored else "refused" if step - session_next(stored) >= WINDOW else None
        assert expected in (None, status)
        stored |= {step} if status in ("stored", "held") else set()
        assert set(recording.gaps(session)) == set(range(STEPS)) - stored or not session.episode_open or STEPS - 1 in stored
    for step in sorted(set(range(STEPS)) - stored):
        assert deliver(session, changes, tiny_networks, step, with_reward=True) in ("stored", "held")
    for step in recording.pending_rewards(session):
        late(session, changes, tiny_networks, step)
    np.testing.assert_array_equal(with_late_rewards(changes, tiny_networks), np.stack(twin_changes.rows))
    assert (changes.transitions, changes.episode) == (STEPS, twin_changes.episode)
    assert (session.episodes_completed, session.rewarded, session.episode_open) == (1, True, False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deliveries=deliveries)
def test_ending_an_episode_accounts_for_every_step(tiny_networks: Networks, deliveries: Any) -> None:
    session, changes = fresh(tiny_networks), Changes()
    stored = {
        step
        for kind, step in deliveries
        if kind != "reward" and deliver(session, changes, tiny_networks, step, with_reward=kind == "transition") in ("stored", "held")
    }
    recording.close_episode(session, changes, tiny_networks)
    if session.ended is None:
        assert stored == set(range(STEPS))
        return
    assert session.ended.steps + len(session.ended.discarded) == len(stored)
    assert not set(session.ended.discarded) & set(session.ended.gaps)
    if STEPS - 1 not in stored:
        assert len(session.ended.gaps) == STEPS - len(stored)
    assert session.episodes_completed == (1 if session.ended.steps else 0)


def test_a_reward_that_comes_when_its_episode_counts_without_it_is_refused(tiny_networks: Networks) -> None:
    session, changes = fresh(tiny_networks), Changes()
    for step in range(STEPS):
        deliver(session, changes, tiny_networks, step, with_reward=step != 3)
    recording.close_episode(session, changes, tiny_networks)  # as the start of the next one does, before that has begun
    with pytest.raises(NoOpenEpisode, match="without the reward of step 3"):
        recording.record_rewards(session, [schemas.LateReward(0, 3, 1.0)], changes, tiny_networks.layout)
    (again,) = recording.record_rewards(session, [schemas.LateReward(0, 2, 1.0)], changes, tiny_networks.layout)
    assert again.status == "duplicate"


def late(session: Session, changes: Changes, networks: Networks, step: int) -> None:
    before = recording.pending_rewards(session)
    item = schemas.LateReward(0, step, reward_of(step))
    try:
        (result,) = recording.record_rewards(session, [item], changes, networks.layout)
    except Conflict:
        assert step not in before
        return
    assert (result.status == "stored") == (step in before)


def session_next(stored: set[int]) -> int:
    return next(step for step in range(STEPS + 1) if step not in stored)


def with_late_rewards(changes: Changes, networks: Networks) -> Floats:
    data = np.stack(changes.rows).copy()
    for offset, reward in changes.late_rewards:
        data.reshape(-1)[offset // 4] += np.float32(reward)
    return data


def test_settling_twice_is_never_done(tiny_networks: Networks) -> None:
    session, changes = fresh(tiny_networks), Changes()
    for step in range(STEPS):
        deliver(session, changes, tiny_networks, step, with_reward=step != 3)
    assert (session.unsettled, session.episodes_completed) == (True, 0)
    assert settle(session, changes) == [3]
    assert (session.unsettled, session.episodes_completed) == (False, 1)
