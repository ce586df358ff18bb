"""Candidates judged on held-back episodes, in a real session: a robot whose reward says how good each skill was."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.policies import Networks
from service.settings import Settings
from service.worker import Worker
from tests.conftest import Driver, state
from tests.service.learners import same, stored_weights, work_off, worker
from training.contract.bundle import Bundle
from training.finetuning import Finetuner
from training.held_back import HELD_EVERY, JUDGED_FROM

CONDITIONING = 6


@pytest.fixture
def networks(tiny_networks: Networks) -> Networks:
    """The tiny bundle, with enough gradient steps for its critics to learn this task, and no limit on how far its policy may go."""
    manifest = tiny_networks.bundle.manifest
    settings = {**manifest.finetuning, "warm_start_updates": 100, "updates_per_episode": 20, "discount": 0.9, "kl_limit": 1e9}
    networks = Networks(Bundle(tiny_networks.bundle.path, manifest.model_copy(update={"finetuning": settings})))
    networks.digest = tiny_networks.digest
    return networks


def begun(api: TestClient, **options: object) -> Driver:
    driver = Driver(api, conditioning_episodes=CONDITIONING, share_skills=True, **options)
    for _ in range(CONDITIONING):
        rewarded_episode(driver)
    return driver


def rewarded_episode(driver: Driver, steps: int = 20) -> None:
    """Four skills; each earns more the closer its first number is to 1."""
    episode = driver.start()["episode"]
    reply = driver.act(episode, 0, state(episode % 3, 0))
    for step in range(steps):
        reward = 0.0 if reply["skill"] is None else float(np.exp(-((reply["skill"][0] - 1) ** 2)))
        reply = driver.step(episode, step, state(episode % 3, step + 1), reward=reward, terminated=step == steps - 1)


def practised(driver: Driver, learner: Worker, held: int = JUDGED_FROM) -> None:
    """Until so many episodes are held back; those that earn more than any before them never are."""
    work_off(learner)
    for _ in range(3 * HELD_EVERY * held):
        if len(finetuner_of(driver, learner).held_back.episodes) == held:
            return
        rewarded_episode(driver)
        work_off(learner)
    pytest.fail(f"never were {held} episodes held back")


def finetuner_of(driver: Driver, learner: Worker) -> Finetuner:
    finetuner = learner._learners[driver.session["session_id"]]._finetuner
    assert finetuner is not None
    return finetuner


def test_a_candidate_that_goes_on_well_passes_and_a_bad_one_is_refused_with_the_reason(
    api: TestClient, settings: Settings, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, learner = begun(api), worker(settings, networks)
    practised(driver, learner)
    good = driver.get("/policy")["versions"][-1]
    assert (good["status"], good["metrics"]["held_back_episodes"]) == ("published", JUDGED_FROM)
    assert f"no worse on {JUDGED_FROM} held-back episodes" in good["reason"]
    sound = Finetuner.update

    def poisoned(self: Finetuner, count: int) -> dict[str, float]:
        losses = sound(self, count)
        self.networks.policy.net[-1].bias.data[0] -= 8.0  # to skills that earn nothing
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "update", poisoned)
        rewarded_episode(driver)
        work_off(learner)
    policy = driver.get("/policy")
    bad = policy["versions"][-1]
    assert (policy["current"], bad["status"]) == (good["version"], "rejected")
    assert bad["reason"].startswith(f"it is worse than version {good['version']}, which serves, on {JUDGED_FROM} held-back episodes")
    assert bad["metrics"]["held_back_change"] < 0
    assert bad["metrics"]["held_back_chance"] < 0.05
    assert policy["history"][-1] | {"at": ""} == {"at": "", "event": "rejected", "version": bad["version"], "reason": bad["reason"]}


def test_held_back_episodes_are_not_learned_from(api: TestClient, settings: Settings, networks: Networks) -> None:
    driver, learner = begun(api), worker(settings, networks)
    practised(driver, learner, held=1)
    finetuner = finetuner_of(driver, learner)
    assert finetuner.episodes >= CONDITIONING + HELD_EVERY
    (held,) = finetuner.held_back.episodes
    learned = finetuner.replay.rows[0, : finetuner.replay.size(0)].numpy()
    assert len(learned) == 4 * (finetuner.episodes - 1)
    assert not any((learned == row).all(1).any() for row in held.rows)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_what_is_known_of_how_a_skill_was_chosen_is_what_it_was_chosen_by(
    api: TestClient, settings: Settings, networks: Networks, temperature: float
) -> None:
    networks.skill_temperature = temperature
    driver, learner = begun(api), worker(settings, networks)
    practised(driver, learner, held=1)
    (held,) = finetuner_of(driver, learner).held_back.episodes
    parts = api.app.state.parts
    loaded = parts.store.load(driver.session["session_id"])
    (version,) = parts.store.episodes(loaded.keys)[-1].versions_used
    weights = parts.versions.weights(loaded.keys, version)
    policy, layout = networks.with_weights(weights, version), networks.layout
    for row, log_density in zip(held.rows, held.log_chosen, strict=True):
        mean, std, *_ = policy.graph.run_one(row[layout.state], policy.task_embedding)
        std = temperature * std
        noise = (row[layout.skill] - mean) / std  # what was drawn, from N(0, 1)
        assert log_density == pytest.approx(float((-0.5 * noise**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum()), rel=1e-4)


@pytest.mark.parametrize("options", [{"deterministic": True}, {"finetuning": True, "forced": "exploring"}])
def test_episodes_whose_skills_were_not_drawn_from_a_policy_are_all_learned_from(
    api: TestClient, settings: Settings, networks: Networks, options: dict[str, object]
) -> None:
    forced = options.pop("forced", None)
    driver, learner = begun(api, **options), worker(settings, networks)
    work_off(learner)
    if forced:
        driver.ok(api.patch(driver.path, json={"phase": forced}))
    for _ in range(HELD_EVERY):
        rewarded_episode(driver)
    driver.ok(api.patch(driver.path, json={"phase": None}))
    rewarded_episode(driver)
    work_off(learner)
    assert finetuner_of(driver, learner).held_back.episodes == []


def test_a_learner_that_goes_on_from_a_checkpoint_holds_the_same_back_and_judges_alike(
    api: TestClient, settings: Settings, networks: Networks
) -> None:
    undisturbed, disturbed = begun(api), begun(api)
    lasting = worker(settings, networks, "lasting")
    work_off(lasting)
    for _ in range(3 * HELD_EVERY * JUDGED_FROM):
        if len((ours := finetuner_of(undisturbed, lasting).held_back).episodes) == JUDGED_FROM:
            break
        lasting._learners.pop(disturbed.session["session_id"], None)  # as if it had died: the next slice begins from the checkpoint
        rewarded_episode(undisturbed)
        rewarded_episode(disturbed)
        work_off(lasting)
    theirs = finetuner_of(disturbed, lasting).held_back
    assert len(ours.episodes) == JUDGED_FROM
    assert (len(ours.episodes), ours.offered) == (len(theirs.episodes), theirs.offered)
    for one, two in zip(ours.episodes, theirs.episodes, strict=True):
        assert np.array_equal(one.rows, two.rows)
        assert np.array_equal(one.log_chosen, two.log_chosen)
    one, two = (driver.get("/policy")["versions"][-1] for driver in (undisturbed, disturbed))
    assert one["reason"] == two["reason"]  # with every figure of the judgement
    assert one["metrics"]["held_back_episodes"] == JUDGED_FROM
    newest = one["version"]
    assert same(stored_weights(api, undisturbed, newest), stored_weights(api, disturbed, newest))
