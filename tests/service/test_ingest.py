"""What lossy links do to transitions: late, twice, out of order, without their reward, lost. Over HTTP, on a real Redis."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import acting, recording, schemas
from service.folding import settle
from service.keys import creation
from service.policies import Networks
from service.session_errors import Conflict, NoOpenEpisode
from service.session_state import Changes, Session, task_prior
from service.sessions import new_session_id
from service.tokens import NOBODY
from service.wire import encode
from tests.conftest import Driver, state, transition
from training.contract.context import Floats
from training.contract.exploration import Exploration, Phase

STEPS = 13
WINDOW = 6


def reward_of(step: int) -> float:
    return step / 4  # sums of these are exact in float32, in any order


def outcome_of(step: int, *, with_reward: bool = True) -> dict[str, Any]:
    outcome = transition(0, step, state(0, step + 1), terminated=step == STEPS - 1)
    return {**outcome, "reward": reward_of(step) if with_reward else None}


def context_of(api: TestClient, driver: Driver) -> Floats:
    store = api.app.state.parts.store
    loaded = store.load(driver.session["session_id"])
    return store.context(loaded.keys, 0, loaded.session.rows, 13)


def acted(api: TestClient, steps: int = STEPS, **options: Any) -> Driver:
    driver = Driver(api, **options)
    driver.start()
    for step in range(steps):
        driver.act(0, step, state(0, step))
    return driver


def undisturbed(api: TestClient) -> Driver:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in range(STEPS)]))
    return driver


def statuses(posted: Any) -> list[str]:
    return [item["status"] for item in posted["results"]]


def test_transitions_in_any_order_make_the_same_context_as_in_order(api: TestClient) -> None:
    driver, twin = acted(api), undisturbed(api)
    posted = driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in (2, 1, 12, 4)]))
    assert statuses(posted) == ["held"] * 4
    assert (posted["accepted"], posted["gaps"], posted["context_size"], posted["episode_over"]) == (4, [0, 3, *range(5, 12)], 0, False)
    posted = driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in (0, 3, 11, 10, 9, 8, 7, 6, 5)]))
    assert statuses(posted) == ["stored", "stored", *["held"] * 6, "stored"]
    assert (posted["gaps"], posted["context_size"], posted["episode_over"]) == ([], 3, True)
    np.testing.assert_array_equal(context_of(api, driver), context_of(api, twin))
    assert driver.get("/task")["mean"] == twin.get("/task")["mean"]


def test_duplicates_have_no_effect_and_are_named(api: TestClient) -> None:
    driver = acted(api, steps=4)
    driver.ok(driver.post("transitions", transitions=[outcome_of(0), outcome_of(2)]))
    before = driver.get()
    posted = driver.ok(driver.post("transitions", transitions=[outcome_of(0), outcome_of(2), outcome_of(2)]))
    assert statuses(posted) == ["duplicate"] * 3
    assert (posted["accepted"], posted["duplicates"], posted["gaps"]) == (0, 3, [1, 3])
    assert driver.get() == before


def test_every_refused_item_is_named_with_its_reason_and_the_others_count(api: TestClient) -> None:
    driver = acted(api, steps=4)
    contradiction = {**outcome_of(0), "reward": 9.0}
    batch = [outcome_of(0), contradiction, outcome_of(9), {**outcome_of(1), "episode": 3}, outcome_of(1)]
    posted = driver.ok(driver.post("transitions", transitions=batch))
    assert [(item["step"], item["status"], item["code"]) for item in posted["results"]] == [
        (0, "stored", None),
        (0, "refused", "duplicate_transition"),
        (9, "refused", "step_not_acted"),
        (1, "refused", "wrong_episode"),
        (1, "stored", None),
    ]
    assert all(item["detail"] for item in posted["results"] if item["status"] == "refused")
    assert (posted["accepted"], posted["refused"]) == (2, 3)


def test_a_step_may_come_before_the_steps_before_it(api: TestClient) -> None:
    driver, twin = acted(api, steps=3), undisturbed(api)
    reply = driver.step(0, 2, state(0, 3), reward=reward_of(2))
    assert reply["step"] == 3
    assert driver.get()["gaps"] == [0, 1, 3]
    for step in range(3, STEPS):
        over = driver.ok(driver.post("step", **outcome_of(step)))
    assert (over["episode_over"], over["action"]) == (True, None)
    refused = driver.post("act", episode=0, step=STEPS, observation=state(0, STEPS))
    assert (refused.status_code, refused.json()["code"]) == (409, "no_open_episode")
    driver.ok(driver.post("transitions", transitions=[outcome_of(1), outcome_of(0)]))
    assert driver.get()["episodes_completed"] == 1
    np.testing.assert_array_equal(context_of(api, driver), context_of(api, twin))


def test_what_an_episode_ends_without_is_named_and_each_skill_keeps_what_came_before_its_gap(api: TestClient) -> None:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in (0, 1, 3, 5, 6, 8, 10, 11, 12)]))
    ended = driver.start()["ended_previous"]
    assert ended == {"episode": 0, "steps": 7, "gaps": [2, 4, 7, 9], "discarded": [3, 8], "missing_rewards": []}
    rows = context_of(api, driver)
    layout = api.app.state.parts.bundles["tiny"].layout
    assert rows[:, layout.reward].tolist() == [sum(map(reward_of, steps)) for steps in ((0, 1), (5, 6), (10, 11, 12))]
    assert rows[:, layout.terminated].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(rows[:, layout.next_state], np.array([state(0, step) for step in (2, 7, 13)], np.float32))
    assert driver.get()["episodes_completed"] == 1


def test_after_an_end_with_gaps_only_what_was_kept_is_a_duplicate(api: TestClient) -> None:
    driver = acted(api)
    kept, dropped = (0, 1, 5, 6, 10, 11, 12), (2, 3, 4, 7, 8, 9)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in (0, 1, 3, 5, 6, 8, 10, 11)]))
    driver.ok(api.post(f"{driver.path}/episodes/end"))
    for step in kept[:-1]:
        assert driver.ok(driver.post("transitions", transitions=[outcome_of(step)]))["results"][0]["status"] == "duplicate"
    for step in (*dropped, 12):
        refused = driver.post("transitions", transitions=[outcome_of(step)])
        assert (refused.status_code, refused.json()["code"]) == (409, "no_open_episode")


def test_late_rewards_count_as_if_they_had_come_in_time(api: TestClient) -> None:
    driver, twin = acted(api), undisturbed(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step, with_reward=step % 3 == 0) for step in range(STEPS - 1)]))
    driver.get("/task")  # inferred before the rewards are there: it must not stay
    posted = driver.ok(driver.post("rewards", rewards=[{"episode": 0, "step": step, "reward": reward_of(step)} for step in (10, 4, 1)]))
    assert (statuses(posted), posted["pending"]) == (["stored"] * 3, [2, 5, 7, 8, 11])
    over = driver.ok(driver.post("transitions", transitions=[outcome_of(12)]))
    assert over["episode_over"] is True
    assert driver.get()["episodes_completed"] == 0  # not to be learned from before it is whole
    missing = [{"episode": 0, "step": step, "reward": reward_of(step)} for step in (2, 5, 7, 8, 11)]
    driver.ok(driver.post("rewards", rewards=missing))
    again = driver.ok(driver.post("rewards", rewards=missing))
    assert statuses(again) == ["duplicate"] * 5
    assert driver.get()["episodes_completed"] == 1
    np.testing.assert_array_equal(context_of(api, driver), context_of(api, twin))
    assert driver.get("/task")["mean"] == twin.get("/task")["mean"]
    store = api.app.state.parts.store
    loaded = store.load(driver.session["session_id"])
    assert store.episodes(loaded.keys)[0].episode_return == sum(map(reward_of, range(STEPS)))


def test_a_late_reward_ends_exploring(api: TestClient) -> None:
    driver = Driver(api, conditioning_episodes=1)
    driver.start()
    driver.act(0, 0, state(0, 0))
    driver.ok(driver.post("transitions", transitions=[{**outcome_of(0, with_reward=False), "terminated": True}]))
    driver.ok(driver.post("rewards", rewards=[{"episode": 0, "step": 0, "reward": 1.0}]))
    assert driver.start()["phase"] == "adapted"


@pytest.mark.parametrize("late", [False, True])
def test_rewards_of_a_skill_that_add_up_to_nothing_are_rewards_whenever_they_come(api: TestClient, late: bool) -> None:
    driver = acted(api, steps=5, conditioning_episodes=1)
    rewards = {1: 1.0, 3: -1.0}
    outcomes = [{**outcome_of(step), "reward": None if late and step in rewards else rewards.get(step, 0.0)} for step in range(5)]
    driver.ok(driver.post("transitions", transitions=[*outcomes[:4], {**outcomes[4], "terminated": True}]))
    if late:
        driver.ok(driver.post("rewards", rewards=[{"episode": 0, "step": step, "reward": reward} for step, reward in rewards.items()]))
    assert context_of(api, driver)[0, api.app.state.parts.bundles["tiny"].layout.reward] == 0
    assert driver.start()["phase"] == "adapted"


def test_rewards_that_never_came_are_named_when_the_next_episode_starts(api: TestClient) -> None:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step, with_reward=step != 4) for step in range(STEPS)]))
    assert driver.get()["pending_rewards"] == [4]
    assert driver.start()["ended_previous"] == {"episode": 0, "steps": STEPS, "gaps": [], "discarded": [], "missing_rewards": [4]}
    assert driver.get()["episodes_completed"] == 1
    late = driver.post("rewards", rewards=[{"episode": 0, "step": 4, "reward": 1.0}])
    assert (late.status_code, late.json()["code"]) == (409, "wrong_episode")


def reward(step: int) -> dict[str, Any]:
    return {"episode": 0, "step": step, "reward": reward_of(step)}


def test_rewards_may_follow_the_end_that_a_client_asked_for(api: TestClient) -> None:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step, with_reward=step not in (4, 11)) for step in range(STEPS - 1)]))

    def ended() -> Any:
        return driver.ok(api.post(f"{driver.path}/episodes/end"))["ended"]

    told = {"episode": 0, "steps": 12, "gaps": [12], "discarded": [], "missing_rewards": [4, 11]}
    assert (ended(), ended()) == (told, told)
    assert driver.get()["episodes_completed"] == 0
    posted = driver.ok(driver.post("rewards", rewards=[reward(4)]))
    assert (statuses(posted), posted["pending"]) == (["stored"], [11])
    assert ended() == {**told, "missing_rewards": [11]}
    posted = driver.ok(driver.post("rewards", rewards=[reward(11), reward(4)]))
    assert statuses(posted) == ["stored", "duplicate"]
    assert driver.get()["episodes_completed"] == 1
    layout = api.app.state.parts.bundles["tiny"].layout
    sums = [sum(map(reward_of, steps)) for steps in (range(5), range(5, 10), range(10, 12))]
    assert context_of(api, driver)[:, layout.reward].tolist() == sums
    assert driver.start()["ended_previous"] == {**told, "missing_rewards": []}


def test_an_end_that_a_client_asked_for_tells_the_rewards_that_an_episode_waits_for(api: TestClient) -> None:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step, with_reward=step != 4) for step in range(STEPS)]))
    told = {"episode": 0, "steps": STEPS, "gaps": [], "discarded": [], "missing_rewards": [4]}
    assert driver.ok(api.post(f"{driver.path}/episodes/end"))["ended"] == told
    driver.ok(driver.post("rewards", rewards=[reward(4)]))
    assert driver.ok(api.post(f"{driver.path}/episodes/end"))["ended"] is None
    assert driver.start()["ended_previous"] is None


def test_after_an_end_with_gaps_only_a_reward_that_was_kept_is_a_duplicate(api: TestClient) -> None:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in (0, 1, 3, 5, 6, 8)]))
    driver.ok(driver.post("transitions", transitions=[{**outcome_of(10), "terminated": True}]))  # steps 11 and 12 were acted for nothing
    driver.ok(api.post(f"{driver.path}/episodes/end"))
    for step in (0, 1, 5, 6, 10):
        assert statuses(driver.ok(driver.post("rewards", rewards=[reward(step)]))) == ["duplicate"]
    for step in (2, 3, 4, 7, 8, 9, 11, 12, 20):
        refused = driver.post("rewards", rewards=[reward(step)])
        assert (refused.status_code, refused.json()["code"]) == (409, "step_not_acted"), step
    refused = driver.post("transitions", transitions=[outcome_of(11)])
    assert (refused.status_code, refused.json()["code"]) == (409, "no_open_episode")


def test_a_reward_without_a_transition_is_refused(api: TestClient) -> None:
    driver = acted(api, steps=2)
    reply = driver.post("rewards", rewards=[{"episode": 0, "step": 1, "reward": 1.0}])
    assert (reply.status_code, reply.json()["code"]) == (409, "step_not_acted")


def test_opening_a_session_again_with_its_key_opens_no_second_one(api: TestClient) -> None:
    def opened(key: str, **body: Any) -> Any:
        return api.post("/v1/sessions", json=body, headers={"idempotency-key": key})

    first, again, other = opened("a", seed=3), opened("a", seed=3), opened("b", seed=3)
    assert [reply.status_code for reply in (first, again, other)] == [201, 201, 201]
    assert first.json()["session_id"] == again.json()["session_id"] != other.json()["session_id"]
    assert len(api.get("/v1/sessions").json()["sessions"]) == 2
    reused = opened("a", seed=4)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    bad = opened("x" * 201)
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_request")


def test_a_session_whose_creator_died_before_it_was_made_is_made_by_the_repetition(api: TestClient) -> None:
    claimed = api.app.state.parts.created.claim("k", encode(schemas.OpenSession()), new_session_id(NOBODY))
    assert api.get(f"/v1/sessions/{claimed}").status_code == 404
    session = Driver.ok(api.post("/v1/sessions", headers={"idempotency-key": "k"}), 201)
    assert session["session_id"] == claimed
    assert [each["session_id"] for each in api.get("/v1/sessions").json()["sessions"]] == [session["session_id"]]


def test_starting_an_episode_again_with_its_key_starts_no_second_one(api: TestClient) -> None:
    driver = Driver(api)

    def start(key: str) -> Any:
        return driver.ok(api.post(f"{driver.path}/episodes", headers={"idempotency-key": key}), 201)

    first = start("one")
    driver.act(0, 0, state(0, 0))
    assert start("one") == {**first, "replayed": True}
    assert driver.get()["step"] == 1
    second = start("two")
    assert (second["episode"], second["ended_previous"]["episode"], start("one")["episode"]) == (1, 0, 0)
    assert driver.get()["episode"] == 1


def test_the_keys_of_created_sessions_expire(api: TestClient) -> None:
    api.post("/v1/sessions", headers={"idempotency-key": "k"})
    redis = api.app.state.parts.store.redis
    (key,) = redis.keys(creation("*"))
    assert 23 * 3600 < redis.ttl(key) <= 24 * 3600


# The same rules without HTTP, against every order of delivery that Hypothesis finds.


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
