"""What lossy links do to transitions: late, twice, out of order, lost. Over HTTP, on a real Redis."""

import numpy as np
from fastapi.testclient import TestClient

from tests.conftest import state
from tests.service.deliveries import STEPS, acted, context_of, outcome_of, reward_of, statuses, undisturbed


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
