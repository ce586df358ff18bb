"""Background fine-tuning: versions, what guards them, rollback, pause."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.policies import Networks
from service.sessions import SessionStore
from service.settings import Settings
from tests.conftest import Driver, state
from tests.service.learners import ready_to_learn, work_off, worker
from training.contract.bundle import Bundle
from training.contract.context import Floats
from training.contract.exploration import skill_noise
from training.finetuning import Finetuner


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A checkpoint after every slice of few updates, and leases that end soon."""
    return settings.model_copy(update={"slice_updates": 3, "checkpoint_interval_s": 0.0, "lease_s": 1.0, "kept_versions": 2})


def test_a_completed_episode_leads_to_a_version_that_the_next_episode_acts_with(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver = ready_to_learn(api)
    assert driver.get("/finetuning")["state"] == "queued"
    work_off(worker(settings, tiny_networks))
    status = driver.get("/finetuning")
    assert (status["state"], status["episodes_completed"], status["episodes_learned"], status["updates"]) == ("idle", 1, 1, 12)
    assert (status["policy_version"], status["error"]) == (1, None)
    assert set(status["losses"]) == {"critic_loss", "actor_loss", "kl", "alpha", "q_mean"}
    mean = np.array(driver.get("/task")["mean"], np.float32)
    assert driver.start()["phase"] == "finetuning"
    reply = driver.act(1, 0, state(1, 0))
    assert (reply["policy_version"], reply["phase"]) == (1, "finetuning")
    parts, observation = api.app.state.parts, np.array(state(1, 0), np.float32)
    weights = parts.versions.weights(parts.store.load(driver.session["session_id"]).keys, 1)
    tuned = tiny_networks.with_weights(weights, 1)
    np.testing.assert_array_equal(tuned.task_embedding, mean)
    skill = tuned.choose_skill(observation, mean, skill_noise(7, 1, 0, 3), use_skill_prior=False)
    own = tiny_networks.meta_policy.choose_skill(observation, mean, skill_noise(7, 1, 0, 3), use_skill_prior=False)
    assert reply["action"] == tiny_networks.decode(observation, skill).tolist()
    assert not np.array_equal(skill, own)


def test_versions_carry_their_reason_episode_and_figures(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    work_off(learner)
    driver.run_episode()
    work_off(learner)
    policy = driver.get("/policy")
    assert (policy["current"], [record["version"] for record in policy["versions"]]) == (2, [0, 1, 2])
    last = policy["versions"][-1]
    assert (last["status"], last["episode"], last["metrics"]["updates"]) == ("published", 1, 16.0)
    assert "2 episodes" in last["reason"]
    assert last["metrics"]["policy_kl"] >= 0
    assert "versions_published" not in api.get("/metrics").text
    assert 'skillet_versions_total{result="published"} 2.0' in api.get("/metrics").text


def test_an_episode_that_earns_more_than_any_before_lets_the_task_be_inferred_anew(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver, learner, acted_with, inferred = ready_to_learn(api), worker(settings, tiny_networks), [], []
    parts = api.app.state.parts
    for reward in (0.0, 2.0, 2.0):
        work_off(learner)
        driver.run_episode(final_reward=reward)
        inferred.append(np.array(driver.get("/task")["mean"], np.float32))
        work_off(worker(settings, tiny_networks))  # another one, which goes on from the checkpoint
        loaded = parts.store.load(driver.session["session_id"])
        weights = parts.versions.weights(loaded.keys, loaded.current_version)
        acted_with.append(tiny_networks.with_weights(weights, loaded.current_version).task_embedding)
    assert [np.array_equal(mean, embedding) for mean, embedding in zip(inferred, acted_with, strict=True)] == [False, True, False]
    np.testing.assert_array_equal(acted_with[2], acted_with[1])


def test_a_new_version_is_ready_before_the_step_that_chooses_with_it(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ready_to_learn(api)
    driver.start()
    driver.act(1, 0, state(1, 0))
    work_off(worker(settings, tiny_networks))
    driver.step(1, 0, state(1, 1))  # finds out, in the middle of a skill
    parts, deadline = api.app.state.parts, time.monotonic() + 20
    while not parts.loop.policies.holds(driver.session["session_id"], 1):
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def never(*_: object) -> None:
        raise AssertionError("a step waited for weights")

    monkeypatch.setattr(parts.versions, "weights", never)
    assert [driver.step(1, step, state(1, step + 1))["policy_version"] for step in range(1, 6)] == [0, 0, 0, 1, 1]


def test_a_version_changes_the_next_skill_and_never_a_running_one(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver = ready_to_learn(api)
    driver.start()
    replies = [driver.act(1, 0, state(1, 0))]
    work_off(worker(settings, tiny_networks))
    replies += [driver.step(1, step, state(1, step + 1)) for step in range(7)]
    assert [reply["policy_version"] for reply in replies] == [0] * 5 + [1] * 3
    assert [reply["phase"] for reply in replies] == ["adapted"] * 5 + ["finetuning"] * 3
    driver.ok(driver.post("policy/rollback"))
    replies = [driver.step(1, step, state(1, step + 1)) for step in range(7, 10)]
    assert [reply["policy_version"] for reply in replies] == [1, 1, 0]
    driver.step(1, 10, state(1, 11), terminated=True)
    store: SessionStore = api.app.state.parts.store
    assert store.episodes(store.load(driver.session["session_id"]).keys)[-1].versions_used == [0, 1]


def test_the_conditioning_episodes_are_in_the_replay(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver = Driver(api, conditioning_episodes=3)
    for _ in range(3):
        driver.run_episode(final_reward=1.0)
    work_off(worker(settings, tiny_networks))
    assert driver.get("/finetuning")["episodes_learned"] == 3
    assert "3 episodes" in driver.get("/policy")["versions"][1]["reason"]


def with_limit(networks: Networks, kl_limit: float) -> Networks:
    """The same bundle with another KL limit."""
    manifest = networks.bundle.manifest
    changed = manifest.model_copy(update={"finetuning": {**manifest.finetuning, "kl_limit": kl_limit}})
    limited = Networks(Bundle(networks.bundle.path, changed))
    limited.digest = networks.digest
    return limited


def test_a_version_too_far_from_the_skill_prior_is_recorded_and_not_served(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver = ready_to_learn(api)
    work_off(worker(settings, with_limit(tiny_networks, 1e-9)))
    policy = driver.get("/policy")
    assert (policy["current"], policy["versions"][1]["status"]) == (0, "rejected")
    assert "KL" in policy["versions"][1]["reason"]
    assert driver.get("/finetuning")["episodes_learned"] == 1
    assert driver.run_episode()[0]["policy_version"] == 0
    assert api.post(f"{driver.path}/policy/rollback", json={"version": 1}).json()["code"] == "unknown_version"
    work_off(worker(settings, tiny_networks, "test-1"))
    assert driver.get("/policy")["current"] == 2


def test_weights_that_are_not_finite_are_not_served_and_learning_recovers(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    work_off(learner)
    sound = Finetuner.update

    def poisoned(self: Finetuner, count: int) -> dict[str, float]:
        losses = sound(self, count)
        self.networks.policy.net[-1].bias.data[0] = float("nan")
        return losses

    monkeypatch.setattr(Finetuner, "update", poisoned)
    driver.run_episode()
    work_off(learner)
    policy = driver.get("/policy")
    assert (policy["current"], policy["versions"][2]["status"]) == (1, "rejected")
    assert "finite" in policy["versions"][2]["reason"]
    monkeypatch.setattr(Finetuner, "update", sound)
    driver.run_episode()
    work_off(learner)
    assert driver.get("/policy")["current"] == 3
    assert driver.get("/finetuning")["episodes_learned"] == 3


def other_numbers(weights: dict[str, Floats]) -> dict[str, Floats]:
    return {name: array + 0.01 for name, array in weights.items()}


def other_names(weights: dict[str, Floats]) -> dict[str, Floats]:
    """onnxruntime ignores a weight whose name the graph does not have: the bundle's own would act, unnoticed, if nobody looked."""
    return {f"other.{name}": array for name, array in weights.items()}


@pytest.mark.parametrize(("changed", "reason"), [(other_numbers, "differs"), (other_names, "not those of the graph")])
def test_weights_that_the_graph_runs_otherwise_than_the_learner_are_not_served(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch, changed: Callable[..., Any], reason: str
) -> None:
    sound = Finetuner.policy_weights
    monkeypatch.setattr(Finetuner, "policy_weights", lambda self: changed(sound(self)))
    driver = ready_to_learn(api)
    work_off(worker(settings, tiny_networks))
    policy = driver.get("/policy")
    assert (policy["current"], policy["versions"][1]["status"]) == (0, "rejected")
    assert reason in policy["versions"][1]["reason"]


def test_while_paused_nothing_is_published_and_resuming_goes_on(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    learner.turn(1)
    paused = driver.ok(api.patch(f"{driver.path}/finetuning", json={"paused": True}))
    assert (paused["paused"], paused["state"]) == (True, "paused")
    work_off(learner)
    status = driver.get("/finetuning?wait_s=20")
    assert (status["updates"], status["policy_version"], status["state"]) == (3, 0, "paused")
    driver.ok(api.patch(f"{driver.path}/finetuning", json={"paused": False}))
    work_off(learner)
    status = driver.get("/finetuning")
    assert (status["updates"], status["policy_version"], status["state"]) == (12, 1, "idle")


def test_rolling_back_holds_until_fine_tuning_is_resumed(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    work_off(learner)
    driver.run_episode()
    work_off(learner)
    policy = driver.ok(driver.post("policy/rollback"))
    assert (policy["current"], [record["status"] for record in policy["versions"]]) == (1, ["published", "published", "rolled_back"])
    assert driver.run_episode()[0]["policy_version"] == 1
    work_off(learner)
    assert driver.get("/policy")["current"] == 1
    assert driver.ok(driver.post("policy/rollback"))["current"] == 0
    assert driver.run_episode()[0]["phase"] == "adapted"
    driver.ok(api.patch(f"{driver.path}/finetuning", json={"paused": False}))
    work_off(learner)
    policy = driver.get("/policy")
    assert (policy["current"], policy["versions"][3]["status"]) == (3, "published")
    assert driver.ok(driver.post("policy/rollback", version=2))["current"] == 2


def test_weights_of_old_versions_are_dropped_and_cannot_be_gone_back_to(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    for _ in range(3):
        work_off(learner)
        driver.run_episode()
    work_off(learner)
    assert driver.get("/policy")["current"] == 4
    refused = driver.post("policy/rollback", version=1)
    assert (refused.status_code, refused.json()["code"], refused.json()["expected"]) == (404, "unknown_version", [0, 3, 4])
    assert driver.get("/finetuning")["paused"] is False
    assert driver.ok(driver.post("policy/rollback", version=0))["current"] == 0


def test_the_same_seed_and_transitions_give_the_same_versions_and_actions(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    one, two = ready_to_learn(api), ready_to_learn(api)
    work_off(worker(settings, tiny_networks, "first"))
    for _ in range(2):
        assert one.run_episode(final_reward=1.0) == two.run_episode(final_reward=1.0)
        work_off(worker(settings, tiny_networks, "third"))
    assert one.get("/finetuning")["losses"] == two.get("/finetuning")["losses"]
