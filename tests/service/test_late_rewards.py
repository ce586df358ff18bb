"""Rewards that come after their transitions, or never. Over HTTP, on a real Redis."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.conftest import Driver, state
from tests.service.deliveries import STEPS, acted, context_of, late_reward, outcome_of, reward_of, statuses, undisturbed


def test_late_rewards_count_as_if_they_had_come_in_time(api: TestClient) -> None:
    driver, twin = acted(api), undisturbed(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step, with_reward=step % 3 == 0) for step in range(STEPS - 1)]))
    driver.get("/task")  # inferred before the rewards are there: it must not stay
    posted = driver.ok(driver.post("rewards", rewards=[late_reward(step) for step in (10, 4, 1)]))
    assert (statuses(posted), posted["pending"]) == (["stored"] * 3, [2, 5, 7, 8, 11])
    over = driver.ok(driver.post("transitions", transitions=[outcome_of(12)]))
    assert over["episode_over"] is True
    assert driver.get()["episodes_completed"] == 0  # not to be learned from before it is whole
    missing = [late_reward(step) for step in (2, 5, 7, 8, 11)]
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


def test_rewards_may_follow_the_end_that_a_client_asked_for(api: TestClient) -> None:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step, with_reward=step not in (4, 11)) for step in range(STEPS - 1)]))

    def ended() -> Any:
        return driver.ok(api.post(f"{driver.path}/episodes/end"))["ended"]

    told = {"episode": 0, "steps": 12, "gaps": [12], "discarded": [], "missing_rewards": [4, 11]}
    assert (ended(), ended()) == (told, told)
    assert driver.get()["episodes_completed"] == 0
    posted = driver.ok(driver.post("rewards", rewards=[late_reward(4)]))
    assert (statuses(posted), posted["pending"]) == (["stored"], [11])
    assert ended() == {**told, "missing_rewards": [11]}
    posted = driver.ok(driver.post("rewards", rewards=[late_reward(11), late_reward(4)]))
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
    driver.ok(driver.post("rewards", rewards=[late_reward(4)]))
    assert driver.ok(api.post(f"{driver.path}/episodes/end"))["ended"] is None
    assert driver.start()["ended_previous"] is None


def test_after_an_end_with_gaps_only_a_reward_that_was_kept_is_a_duplicate(api: TestClient) -> None:
    driver = acted(api)
    driver.ok(driver.post("transitions", transitions=[outcome_of(step) for step in (0, 1, 3, 5, 6, 8)]))
    driver.ok(driver.post("transitions", transitions=[{**outcome_of(10), "terminated": True}]))  # steps 11 and 12 were acted for nothing
    driver.ok(api.post(f"{driver.path}/episodes/end"))
    for step in (0, 1, 5, 6, 10):
        assert statuses(driver.ok(driver.post("rewards", rewards=[late_reward(step)]))) == ["duplicate"]
    for step in (2, 3, 4, 7, 8, 9, 11, 12, 20):
        refused = driver.post("rewards", rewards=[late_reward(step)])
        assert (refused.status_code, refused.json()["code"]) == (409, "step_not_acted"), step
    refused = driver.post("transitions", transitions=[outcome_of(11)])
    assert (refused.status_code, refused.json()["code"]) == (409, "no_open_episode")


def test_a_reward_without_a_transition_is_refused(api: TestClient) -> None:
    driver = acted(api, steps=2)
    reply = driver.post("rewards", rewards=[{"episode": 0, "step": 1, "reward": 1.0}])
    assert (reply.status_code, reply.json()["code"]) == (409, "step_not_acted")
