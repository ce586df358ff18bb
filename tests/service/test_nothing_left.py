"""Sessions by Thompson sampling that explore when their episode has nothing left to gain by what they know."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.held_back_check import log_chosen
from service.policies import Networks
from service.session_state import EpisodeRecord
from service.sessions_cli import main
from service.settings import Settings
from tests.conftest import Driver, state, transition
from tests.service.learners import work_off, worker
from training.contract.bundle import Bundle
from training.contract.context import Floats
from training.contract.exploration import EXPLORE_SKILLS, RECENT_EPISODES, Exploration, drawn_embedding, embedding_beyond, skill_noise
from training.held_back import HeldEpisode

H, STEPS = 5, 12
REWARDED = 2  # the step that earns 1, within an episode's first skill


def thinker(api: TestClient, **options: Any) -> Driver:
    return Driver(api, exploration="thompson", conditioning_episodes=1, **options)


def episode(driver: Driver, reward: float = 1.0, steps: int = STEPS) -> list[Any]:
    """One whole episode, rewarded once. Returns the action replies."""
    number = driver.start()["episode"]
    replies = [driver.act(number, 0, state(number, 0))]
    for step in range(steps):
        outcome = {"reward": reward if step == REWARDED else 0.0, "terminated": step == steps - 1}
        replies.append(driver.step(number, step, state(number, step + 1), **outcome))
    return replies


def told(driver: Driver, number: int, step: int, **outcome: Any) -> None:
    """Post one transition of a client that asks for its actions ahead."""
    driver.ok(driver.post("transitions", transitions=[transition(number, step, state(number, step + 1), **outcome)]))


def records(driver: Driver) -> list[EpisodeRecord]:
    store = driver.api.app.state.parts.store
    return store.episodes(store.load(driver.session["session_id"]).keys)


def test_skills_come_from_the_bundles_policy_under_a_training_tasks_embedding(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver = thinker(api)
    episode(driver)
    work_off(worker(settings, tiny_networks))
    replies = episode(driver)
    assert [reply["policy_version"] for reply in replies[:STEPS]] == [1] * H + [0] * (STEPS - H)
    assert {reply["phase"] for reply in replies} == {"finetuning"}
    for skill in (1, 2):
        embedding = embedding_beyond(tiny_networks.belief, seed=7, episode=1, skill_index=skill)
        assert embedding.tolist() in tiny_networks.belief.particles.tolist()
        observation = np.array(state(1, skill * H), np.float32)
        chosen = tiny_networks.meta_policy.choose_skill(observation, embedding, skill_noise(7, 1, skill * H, 3), use_skill_prior=False)
        assert replies[skill * H]["action"] == tiny_networks.decode(observation, chosen).tolist()
    assert [(record.versions_used, record.beyond_from) for record in records(driver)] == [([0], -1), ([1], H)]


def test_embeddings_change_every_few_skills_and_from_episode_to_episode(tiny_networks: Networks) -> None:
    drawn = [embedding_beyond(tiny_networks.belief, seed=7, episode=1, skill_index=skill).tolist() for skill in range(10 * EXPLORE_SKILLS)]
    assert all(drawn[skill] == drawn[skill - skill % EXPLORE_SKILLS] for skill in range(len(drawn)))
    assert len({tuple(embedding) for embedding in drawn}) > 2
    assert any(
        embedding_beyond(tiny_networks.belief, seed=7, episode=2, skill_index=skill).tolist() != drawn[skill] for skill in range(len(drawn))
    )


@pytest.mark.parametrize("reward", [0.0, 0.5])
def test_an_episode_that_has_earned_less_than_the_best_goes_on_as_the_session_knows(api: TestClient, reward: float) -> None:
    driver = thinker(api)
    episode(driver)
    episode(driver, reward)
    assert records(driver)[-1].beyond_from == -1


def test_what_one_lucky_episode_earned_long_ago_does_not_stop_a_session_from_exploring(api: TestClient) -> None:
    driver = thinker(api)
    episode(driver, reward=2.0)
    for _ in range(RECENT_EPISODES):
        episode(driver)
    assert [record.beyond_from for record in records(driver)] == [-1] * (1 + RECENT_EPISODES)
    episode(driver)
    assert records(driver)[-1].beyond_from == H


def test_exploring_that_has_begun_goes_on_whatever_follows(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver = thinker(api)
    episode(driver)
    work_off(worker(settings, tiny_networks))
    number, versions = driver.start()["episode"], []
    versions.append(driver.act(number, 0, state(number, 0))["policy_version"])
    for step in range(STEPS - 1):
        if step == H + 1:
            driver.ok(api.patch(driver.path, json={"phase": "adapted"}))  # holds from the next episode
        reward = {REWARDED: 1.0, H + 1: -1.0}.get(step, 0.0)
        versions.append(driver.step(number, step, state(number, step + 1), reward=reward)["policy_version"])
    driver.step(number, STEPS - 1, state(number, STEPS), terminated=True)
    assert versions == [1] * H + [0] * (STEPS - H)
    assert (records(driver)[-1].episode_return, records(driver)[-1].known_return) == (0.0, 1.0)
    episode(driver)
    assert records(driver)[-1].beyond_from == -1


def test_an_episode_that_began_in_a_phase_that_was_set_does_not_explore_when_it_is_unset(api: TestClient) -> None:
    driver = thinker(api)
    episode(driver)
    driver.ok(api.patch(driver.path, json={"phase": "adapted"}))
    number = driver.start()["episode"]
    driver.act(number, 0, state(number, 0))
    driver.ok(api.patch(driver.path, json={"phase": None}))
    for step in range(STEPS):
        driver.step(number, step, state(number, step + 1), reward=float(step == REWARDED), terminated=step == STEPS - 1)
    assert records(driver)[-1].beyond_from == -1


def test_a_session_that_went_back_to_an_older_version_does_not_take_what_the_newer_earned_for_all_it_can(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver = thinker(api)
    for reward in (1.0, 0.25, 0.25):
        work_off(worker(settings, tiny_networks))
        episode(driver, reward=reward)
    driver.ok(driver.post("policy/rollback", version=1))
    for _ in range(RECENT_EPISODES):
        episode(driver, reward=0.25)
    assert records(driver)[3].versions_used == [1]
    assert [record.beyond_from for record in records(driver)[3:5]] == [-1, H]


@pytest.mark.parametrize("asked", [{"deterministic": True}, {"exploration": "switching"}, "adapted"])
def test_a_session_that_was_asked_for_something_else_does_that(api: TestClient, asked: Any) -> None:
    driver = thinker(api) if isinstance(asked, str) else Driver(api, **{"exploration": "thompson", "conditioning_episodes": 1} | asked)
    episode(driver)
    if isinstance(asked, str):
        driver.ok(api.patch(driver.path, json={"phase": asked}))
    episode(driver)
    assert records(driver)[-1].beyond_from == -1


def test_a_replay_is_identical_to_the_bit(
    api: TestClient,
    settings: Settings,
    tiny_bundle: Bundle,
    tiny_networks: Networks,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SKILLET_REDIS_URL", str(settings.redis_url))
    driver = thinker(api)
    for _ in range(3):
        episode(driver)
        work_off(worker(settings, tiny_networks))
    assert (records(driver)[-1].versions_used, records(driver)[-1].beyond_from) == ([2], H)
    driver.ok(api.patch(driver.path, json={"phase": "adapted"}))  # later than all that is replayed
    assert main(["replay", driver.session["session_id"], "--bundle", str(tiny_bundle.path)]) == 0
    assert f"{3 * STEPS} actions replayed, {3 * STEPS} identical, 0 differ" in capsys.readouterr().out


def known_skills(api: TestClient, driver: Driver, networks: Networks) -> tuple[Floats, Floats | None]:
    """The rows of a session's newest episode, and how likely a learner takes its skills to have been."""
    parts = api.app.state.parts
    loaded, record = parts.store.load(driver.session["session_id"]), records(driver)[-1]
    rows = parts.store.context(loaded.keys, record.first_row, record.end_row, networks.layout.width)
    return rows, log_chosen(loaded, record, rows, lambda: rows[:0], networks, parts.versions)


def test_a_version_is_judged_by_the_skills_that_it_chose(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, layout = thinker(api), tiny_networks.layout
    episode(driver)
    work_off(worker(settings, tiny_networks))
    episode(driver)
    rows, found = known_skills(api, driver, tiny_networks)
    assert len(rows) == 3
    assert found is not None
    parts = api.app.state.parts
    tuned = parts.versions.policy(parts.store.load(driver.session["session_id"]).keys, 1, tiny_networks)
    mean, std, *_ = tuned.graph.run_one(rows[0, layout.state], tuned.task_embedding)
    noise = skill_noise(7, 1, 0, 3)
    np.testing.assert_allclose(rows[0, layout.skill], mean + std * noise, atol=1e-5)
    assert found.tolist() == pytest.approx([float((-0.5 * noise**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum())], rel=1e-3)
    assert len(HeldEpisode(rows, found).judged) == 1


def test_an_episode_cut_short_before_its_exploring_skill_is_known_as_far_as_it_went(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    """A client that acts ahead: the reward that is enough comes in between two skills that both have begun."""
    driver = thinker(api)
    episode(driver)
    work_off(worker(settings, tiny_networks))
    number = driver.start()["episode"]
    for step in range(H + 1):
        driver.act(number, step, state(number, step))
    for step in range(H):
        told(driver, number, step, reward=float(step == REWARDED))
    for step in range(H + 1, 2 * H + 1):
        driver.act(number, step, state(number, step))
    told(driver, number, H, truncated=True)
    rows, found = known_skills(api, driver, tiny_networks)
    assert records(driver)[-1].beyond_from == 2 * H
    assert found is not None
    assert len(rows) == len(found) == 2


def test_before_the_first_reward_embeddings_of_training_tasks_take_turns_with_the_prior(api: TestClient, tiny_networks: Networks) -> None:
    driver = Driver(api, exploration="alternating", conditioning_episodes=2)
    for number in range(2):
        assert driver.start()["episode"] == number
        action = driver.act(number, 0, state(number, 0))["action"]
        observation, noise = np.array(state(number, 0), np.float32), skill_noise(7, number, 0, 3)
        drawn = drawn_embedding(Exploration.ALTERNATING, 7, 0, 0, 2)
        embedding = tiny_networks.belief.at_random(seed=7, episode=1, turn=0) if number else drawn
        chosen = tiny_networks.meta_policy.choose_skill(observation, embedding, noise, use_skill_prior=False)
        assert action == tiny_networks.decode(observation, chosen).tolist()
