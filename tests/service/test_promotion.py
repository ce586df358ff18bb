"""Guarded promotion: what a version must pass, going back by itself when returns fall, approval, and the history of it all."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from msgspec import structs

from service.judgement import SIGNIFICANCE, Fallback, Fallen, chance_of_fall, find_fall, find_recovery
from service.policies import Networks
from service.session_state import EpisodeRecord
from service.settings import Settings
from service.worker import Worker
from tests.conftest import Driver
from tests.service.learners import ready_to_learn, same, stored_weights, work_off, worker
from tests.tiny_bundle import with_envelope
from training.contract.envelope import Envelope
from training.contract.exploration import Phase
from training.finetuning import Finetuner


def records(returns: list[float], versions: list[int], phase: Phase = Phase.FINETUNING) -> list[EpisodeRecord]:
    return [EpisodeRecord(i, i, i + 1, 5, r, phase, [v]) for i, (r, v) in enumerate(zip(returns, versions, strict=True))]


def fall(driver: Driver, learner: Worker, good_episodes: int) -> None:
    """Learn from good episodes, then from bad ones until the session goes back by itself."""
    work_off(learner)
    for _ in range(good_episodes):
        driver.run_episode(final_reward=1.0)
        work_off(learner)
    while driver.get("/finetuning")["state"] != "paused":
        driver.run_episode(final_reward=-1.0)
        work_off(learner)


def test_a_bad_fine_tune_is_rolled_back_within_five_episodes(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    work_off(learner)
    for _ in range(8):
        driver.run_episode(final_reward=1.0)
        work_off(learner)
    good = driver.get("/policy")["current"]
    for episodes in range(1, 6):
        driver.run_episode(final_reward=-1.0)  # poisoned: each version learns from it, and each episode is as bad
        work_off(learner)
        policy = driver.get("/policy")
        if policy["current"] < good + episodes - 1:
            break
    assert episodes <= 5
    assert policy["current"] <= good
    last = policy["history"][-1]
    assert (last["event"], last["version"]) == ("rolled_back_to", policy["current"])
    assert "mean return fell from 1 in" in last["reason"]
    assert {record["status"] for record in policy["versions"] if record["version"] > policy["current"]} == {"rolled_back"}
    assert driver.get("/finetuning")["state"] == "paused"
    assert "skillet_automatic_rollbacks_total 1.0" in api.get("/metrics").text
    assert driver.run_episode()[0]["policy_version"] == policy["current"]


def test_returns_that_only_vary_do_not_go_back() -> None:
    rng = np.random.default_rng(0)
    judged = fallen = 0
    for _ in range(150):
        returns = (rng.random(40) < 0.8).astype(float).tolist()
        history = records(returns, list(range(1, 41)))
        for end in range(8, 41):
            judged += 1
            fallen += find_fall(history[:end], end) is not None
    assert fallen / judged < 3 * SIGNIFICANCE


@pytest.mark.parametrize(("before", "after", "chance"), [([1, 1, 1], [0, 0], 1 / 10), ([1, 2, 3], [0], 1 / 4), ([0, 0, 0], [1], 1.0)])
def test_the_chance_of_a_fall_is_the_share_of_orders_that_show_it(before: list[float], after: list[float], chance: float) -> None:
    assert chance_of_fall(np.array(before, float), np.array(after, float)) == pytest.approx(chance)


def test_a_fall_is_not_held_against_a_version_that_was_there_before_it() -> None:
    returns = [1.0] * 10 + [0.0] * 5
    assert find_fall(records(returns, [3] * 15), 3) is None
    assert find_fall(records(returns, [3] * 10 + [4] * 5), 4).versions == [3]
    assert find_fall(records(returns, [3] * 10 + [4] * 5), 3) is None  # gone back already
    assert find_fall(records(returns, [3] * 10 + [4] * 5, Phase.EXPLORING), 4) is None


def test_what_was_earned_beyond_what_a_session_knew_hides_no_fall() -> None:
    lucky = [structs.replace(record, episode_return=1.0, beyond_return=1.0) for record in records([0.0] * 5, [4] * 5)]
    assert find_fall([*records([1.0] * 10, [3] * 10), *lucky], 4).versions == [3]


def test_the_version_of_the_middle_before_the_fall_is_the_first_choice() -> None:
    assert find_fall(records([1.0] * 10 + [0.0] * 3, list(range(1, 14))), 13).versions == [6, 7, 8, 9, 10]


def test_episodes_of_versions_that_were_gone_back_from_are_no_reference() -> None:
    history = records([1.0] * 10 + [0.0] * 5 + [1.0] * 3 + [0.0] * 3, [*range(1, 16), 6, 6, 6, 16, 17, 18])
    assert find_fall(history, 18) is None  # five bad episodes before make the new ones look usual
    assert find_fall(history, 18, [Fallen(7, 15)]).versions == [5, 6]


def test_a_session_learns_on_once_its_returns_are_what_they_were() -> None:
    fallback, bad = Fallback(version=6, episode=14, returns=[1.0] * 10), [1.0] * 10 + [0.0] * 5
    versions = [*range(1, 16), *[6] * 6]
    assert find_recovery(records([*bad, *[1.0] * 4], versions[:-2]), fallback) is None  # too few to say
    assert "mean return is 1 in 5 episodes since, and was 1 before" in find_recovery(records([*bad, *[1.0] * 5], versions[:-1]), fallback)
    assert find_recovery(records([*bad, 1, 0, 1, 1, 1], versions[:-1]), fallback) is not None  # one of five is no evidence
    assert find_recovery(records([*bad, 0, 1, 1, 0, 1], versions[:-1]), fallback) is None
    assert find_recovery(records([*bad, 0, 1, 1, 1, 1, 1], versions), fallback) is not None  # the newest five
    assert find_recovery(records([*bad, *[1.0] * 5], [*versions[:-6], *[9] * 5]), fallback) is None  # of another version


def test_after_going_back_a_session_learns_on_from_there_by_itself(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_again, begin_again = [], Finetuner.begin_again
    monkeypatch.setattr(Finetuner, "begin_again", lambda self, *given: (began_again.append(given), begin_again(self, *given)))
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    fall(driver, learner, good_episodes=10)
    back_to = driver.get("/policy")["current"]
    assert 0 < back_to < 11
    good = stored_weights(api, driver, back_to)
    for _ in range(6):
        driver.run_episode(final_reward=-1.0)  # still as bad: whatever it is, it is not the policy
    assert (driver.get("/finetuning")["paused"], driver.get("/policy")["current"]) == (True, back_to)
    for _ in range(5):
        assert driver.run_episode(final_reward=1.0)[0]["policy_version"] == back_to
    policy = driver.get("/policy")
    assert (policy["history"][-1]["event"], policy["history"][-1]["version"]) == ("resumed", back_to)
    assert "in 5 episodes since, and was 1 before it fell" in policy["history"][-1]["reason"]
    assert driver.get("/finetuning")["paused"] is False
    work_off(learner)
    policy = driver.get("/policy")
    ((weights, embedding),) = began_again
    assert same(weights, good)
    parts = api.app.state.parts
    stored = parts.versions.weights(parts.store.load(driver.session["session_id"]).keys, back_to)
    assert embedding.tobytes() == stored.task_embedding
    assert policy["current"] > max(record["version"] for record in policy["versions"] if record["status"] == "rolled_back")
    assert driver.run_episode()[0]["policy_version"] == policy["current"]


@pytest.mark.parametrize("paused", [True, False])
def test_a_client_that_pauses_or_resumes_decides_for_itself(
    api: TestClient, settings: Settings, tiny_networks: Networks, paused: bool
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    fall(driver, learner, good_episodes=8)
    driver.ok(api.patch(f"{driver.path}/finetuning", json={"paused": paused}))
    for _ in range(6):
        driver.run_episode(final_reward=1.0)
    assert driver.get("/finetuning")["paused"] is paused
    assert "resumed" not in [event["event"] for event in driver.get("/policy")["history"]]


def test_a_version_that_is_approved_after_going_back_is_learned_on_from(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_again, begin_again = [], Finetuner.begin_again
    monkeypatch.setattr(Finetuner, "begin_again", lambda self, *given: (began_again.append(given), begin_again(self, *given)))
    driver, learner = ready_to_learn(api, promotion="manual"), worker(settings, tiny_networks)
    for episode in range(11):
        work_off(learner)
        if episode not in (0, 5):
            driver.ok(driver.post("policy/approve"))
        driver.run_episode(final_reward=1.0)
    while driver.get("/finetuning")["state"] != "paused":
        work_off(learner)
        driver.ok(driver.post("policy/approve"))
        driver.run_episode(final_reward=-1.0)
    assert driver.get("/policy")["history"][-1]["event"] == "rolled_back_to"
    gone = driver.post("policy/approve", version=1).json()
    assert (gone["code"], gone["expected"]) == ("unknown_version", [6])
    assert "no longer kept" in gone["detail"]
    driver.ok(driver.post("policy/approve", version=6))  # which has waited all the time
    driver.ok(api.patch(f"{driver.path}/finetuning", json={"paused": False}))
    newest = driver.get("/policy")["versions"][-1]["version"]
    driver.run_episode(final_reward=1.0)
    work_off(learner)
    ((weights, _),) = began_again  # and not from those that fell, nor from those that it went back to
    assert same(weights, stored_weights(api, driver, 6))
    assert driver.get("/policy")["versions"][-1]["version"] > newest
    while driver.get("/finetuning")["state"] != "paused":  # and it goes back from what was approved too
        work_off(learner)
        driver.ok(driver.post("policy/approve"))
        driver.run_episode(final_reward=-3.0)


def test_the_weights_that_serve_are_kept_however_many_candidates_come_after(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver, learner = ready_to_learn(api, promotion="manual"), worker(settings, tiny_networks)
    work_off(learner)
    driver.ok(driver.post("policy/approve"))
    for _ in range(settings.kept_versions + 2):
        driver.run_episode(final_reward=1.0)
        work_off(learner)
    assert driver.get("/policy")["current"] == 1
    store = api.app.state.parts.store
    held = {int(each) for each in store.redis.hkeys(store.load(driver.session["session_id"]).keys.weights)}
    newest = settings.kept_versions + 3
    assert held == {1, *range(newest - settings.kept_versions + 1, newest + 1)}


def test_a_version_waits_for_approval_where_the_session_says_so(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api, promotion="manual"), worker(settings, tiny_networks)
    work_off(learner)
    driver.run_episode(final_reward=1.0)
    work_off(learner)
    policy = driver.get("/policy")
    assert (policy["current"], [record["status"] for record in policy["versions"]]) == (0, ["published", "candidate", "candidate"])
    assert driver.run_episode()[0]["policy_version"] == 0
    policy = driver.ok(driver.post("policy/approve", version=1))
    assert (policy["current"], policy["versions"][1]["status"]) == (1, "published")
    assert driver.run_episode()[0]["policy_version"] == 1
    assert driver.ok(driver.post("policy/approve"))["current"] == 2
    missing = driver.post("policy/approve", version=9)
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")
    assert [event["event"] for event in driver.get("/policy")["history"]] == ["candidate", "candidate", "approved", "approved"]


def test_a_candidate_cannot_be_gone_back_to(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api, promotion="manual"), worker(settings, tiny_networks)
    work_off(learner)
    driver.ok(driver.post("policy/approve"))
    driver.run_episode(final_reward=1.0)
    work_off(learner)
    refused = driver.post("policy/rollback", version=2)
    assert (refused.status_code, refused.json()["code"], refused.json()["expected"]) == (404, "unknown_version", [0, 1])
    assert "waits for approval" in refused.json()["detail"]
    policy = driver.get("/policy")
    assert (policy["current"], policy["versions"][2]["status"]) == (1, "candidate")
    assert driver.get("/finetuning")["paused"] is False


def test_a_rejected_version_cannot_be_gone_back_to(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    monkeypatch.setattr("service.learning.find_fault", lambda *_: "it is to be rejected")
    work_off(learner)
    assert driver.get("/policy")["versions"][1]["status"] == "rejected"
    refused = driver.post("policy/rollback", version=1)
    assert (refused.status_code, refused.json()["code"], refused.json()["expected"]) == (404, "unknown_version", [0])


def test_the_history_tells_every_event_with_its_reason(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    work_off(learner)
    driver.ok(driver.post("policy/rollback"))
    published, rolled_back = driver.get("/policy")["history"]
    assert (published["event"], published["version"]) == ("published", 1)
    assert published["reason"].startswith("fine-tuned on 1 episode")
    assert (rolled_back["event"], rolled_back["version"], rolled_back["reason"]) == ("rolled_back_to", 0, "a client asked for it")


def test_a_version_that_the_envelope_would_mostly_change_is_not_served(settings: Settings, tiny_bundle, tmp_path) -> None:
    from service.app import create_app

    narrow = Envelope(
        action_low=(0.9, 0.9),
        action_high=(1.0, 1.0),
        action_change=(1.0, 1.0),
        observation_low=(-9.0,) * 4,
        observation_high=(9.0,) * 4,
        refused_low=(-90.0,) * 4,
        refused_high=(90.0,) * 4,
        source="a test",
    )
    networks = Networks(with_envelope(tiny_bundle, tmp_path / "tiny", narrow))
    with TestClient(create_app(settings, {"tiny": networks})) as api:
        driver: Driver = ready_to_learn(api)
        work_off(worker(settings, networks))
        (_, record) = driver.get("/policy")["versions"]
    assert record["status"] == "rejected"
    assert "the safety envelope would change 100% of its actions" in record["reason"]
