"""The step loop over HTTP, on a real Redis."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.policies import Networks
from service.settings import Settings
from tests.conftest import Driver, state, transition
from tests.skill_folder import SkillFolder
from training.contract.exploration import Exploration, drawn_embedding, skill_noise


def test_an_episode_is_numbered_and_its_skills_last_h_steps(driver: Driver) -> None:
    replies = driver.run_episode(steps=7)
    assert [reply["step"] for reply in replies] == list(range(8))
    assert [reply["skill_step"] for reply in replies] == [0, 1, 2, 3, 4, 0, 1, None]
    assert [reply["episode_over"] for reply in replies] == [False] * 7 + [True]
    assert replies[-1]["action"] is None
    session = driver.get()
    assert (session["episodes_completed"], session["context_size"], session["episode_open"]) == (1, 2, False)


def test_actions_are_those_of_the_graphs_and_the_exploration_rule(driver: Driver, tiny_networks: Networks) -> None:
    episode = driver.start()["episode"]
    first = driver.act(episode, 0, state(0, 0))
    observation = np.array(state(0, 0), np.float32)
    embedding = drawn_embedding(Exploration.SWITCHING, 7, 0, 0, 2)
    skill = tiny_networks.meta_policy.choose_skill(observation, embedding, skill_noise(7, 0, 0, 3), use_skill_prior=False)
    assert first["action"] == tiny_networks.decode(observation, skill).tolist()
    later = np.array(state(0, 1), np.float32)
    second = driver.step(episode, 0, state(0, 1))
    assert second["action"] == tiny_networks.decode(later, skill).tolist()


def test_skill_transitions_in_redis_are_those_that_the_offline_folder_makes(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver, store = Driver(api, deterministic=True), api.app.state.parts.store
    driver.start()
    driver.act(0, 0, state(0, 0))
    folder, rows = SkillFolder(tiny_networks.layout, 5), []
    embedding = drawn_embedding(Exploration.SWITCHING, 7, 0, 0, 2)
    for step in range(13):
        now, after = np.array(state(0, step), np.float32), np.array(state(0, step + 1), np.float32)
        if step % 5 == 0:
            folder.begin(now, tiny_networks.meta_policy.choose_skill(now, embedding, None, use_skill_prior=False))
        outcome = {"reward": step + 0.5, "terminated": step == 12}
        row = folder.add(outcome["reward"], after, terminated=outcome["terminated"], truncated=False)
        if row is not None:
            rows.append(row)
        driver.step(0, step, state(0, step + 1), **outcome)
    loaded = store.load(driver.session["session_id"])
    stored = store.context(loaded.keys, 0, loaded.session.rows, tiny_networks.layout.width)
    np.testing.assert_array_equal(stored, np.stack(rows))
    (record,) = store.episodes(loaded.keys)
    assert (record.first_row, record.end_row, record.steps, record.episode_return) == (0, 3, 13, sum(step + 0.5 for step in range(13)))


def test_the_same_request_again_has_one_effect_and_the_same_answer(driver: Driver) -> None:
    driver.start()
    act = driver.act(0, 0, state(0, 0))
    assert driver.act(0, 0, state(0, 0)) == {**act, "replayed": True}
    step = driver.step(0, 0, state(0, 1), reward=2.0)
    before = driver.get()
    assert driver.step(0, 0, state(0, 1), reward=2.0) == {**step, "replayed": True}
    assert driver.get() == before
    over = driver.step(0, 1, state(0, 2), terminated=True)
    assert driver.step(0, 1, state(0, 2), terminated=True) == {**over, "replayed": True}
    assert driver.get()["episodes_completed"] == 1


def test_one_may_act_ahead_and_post_transitions_later(api: TestClient) -> None:
    ahead, together = Driver(api), Driver(api)
    ahead.start()
    actions = [ahead.act(0, step, state(0, step))["action"] for step in range(7)]
    posted = ahead.ok(ahead.post("transitions", transitions=[transition(0, step, state(0, step + 1)) for step in range(4)]))
    assert (posted["accepted"], posted["duplicates"], posted["gaps"], posted["context_size"]) == (4, 0, [4, 5, 6], 0)
    rest = [transition(0, step, state(0, step + 1), terminated=step == 6) for step in range(2, 7)]
    posted = ahead.ok(ahead.post("transitions", transitions=rest))
    assert (posted["accepted"], posted["duplicates"], posted["gaps"], posted["context_size"]) == (3, 2, [], 2)
    assert posted["episode_over"] is True
    assert [reply["action"] for reply in together.run_episode(steps=7)][:7] == actions
    assert ahead.get("/task")["mean"] == together.get("/task")["mean"]


def test_a_new_episode_ends_the_open_one_as_truncated_and_keeps_its_last_skill(driver: Driver) -> None:
    driver.start()
    driver.act(0, 0, state(0, 0))
    for step in range(6):
        driver.step(0, step, state(0, step + 1), reward=1.0)
    started = driver.start()
    ended = {"episode": 0, "steps": 6, "gaps": [6], "discarded": [], "missing_rewards": []}
    assert started == {"episode": 1, "phase": "exploring", "ended_previous": ended, "replayed": False}
    session = driver.get()
    assert (session["context_size"], session["episodes_completed"], session["episode"], session["step"]) == (2, 1, 1, 0)


def test_an_episode_without_a_transition_is_not_counted(driver: Driver) -> None:
    driver.start()
    assert driver.start()["ended_previous"]["steps"] == 0
    assert driver.get()["episodes_completed"] == 0


def test_the_posterior_of_all_context_is_ready_when_an_episode_starts(api: TestClient, tiny_networks: Networks) -> None:
    driver = Driver(api, conditioning_episodes=1, finetuning=False)
    driver.run_episode(final_reward=1.0)
    assert driver.start()["phase"] == "adapted"
    reply = driver.act(1, 0, state(1, 0))
    task = driver.get("/task")
    assert (reply["task_version"], task["version"], task["context_size"]) == (2, 2, 2)
    observation, mean = np.array(state(1, 0), np.float32), np.array(task["mean"], np.float32)
    skill = tiny_networks.meta_policy.choose_skill(observation, mean, skill_noise(7, 1, 0, 3), use_skill_prior=False)
    assert reply["action"] == tiny_networks.decode(observation, skill).tolist()


def test_without_context_the_posterior_is_the_task_prior(driver: Driver) -> None:
    task = driver.get("/task")
    assert (task["version"], task["mean"], task["scale"], task["context_size"]) == (0, [0.0, 0.0], [1.0, 1.0], 0)


def test_exploring_goes_on_until_a_reward_comes(api: TestClient) -> None:
    driver = Driver(api, conditioning_episodes=2, finetuning=False)
    phases = [driver.run_episode()[0]["phase"] for _ in range(4)]
    assert phases == ["exploring"] * 4
    driver.run_episode(final_reward=1.0)
    assert driver.run_episode()[0]["phase"] == "adapted"


def test_a_forced_phase_holds_from_the_next_episode(api: TestClient) -> None:
    driver = Driver(api, conditioning_episodes=1)
    driver.start()
    changed = driver.ok(api.patch(driver.path, json={"phase": "adapted"}))
    assert (changed["phase"], changed["forced_phase"]) == ("exploring", "adapted")
    assert driver.act(0, 0, state(0, 0))["phase"] == "exploring"
    assert driver.start()["phase"] == "adapted"
    driver.ok(api.patch(driver.path, json={"phase": None}))
    assert driver.start()["phase"] == "exploring"


def test_the_same_seed_and_transitions_give_the_same_bits(api: TestClient) -> None:
    one, two = Driver(api, conditioning_episodes=1), Driver(api, conditioning_episodes=1)
    for _ in range(3):
        assert one.run_episode(final_reward=1.0) == two.run_episode(final_reward=1.0)


def test_sessions_do_not_leak_into_each_other(api: TestClient) -> None:
    alone, mixed, other = Driver(api), Driver(api), Driver(api, seed=8)
    expected = alone.run_episode()
    mixed.start()
    found = [mixed.act(0, 0, state(0, 0))]
    other.start()
    other.act(0, 0, state(3, 0))
    for step in range(7):
        found.append(mixed.step(0, step, state(0, step + 1), terminated=step == 6))
        other.step(0, step, state(3, step + 1), reward=9.0)
    assert found == expected
    assert mixed.get("/task")["mean"] != other.get("/task")["mean"]


def test_a_deterministic_session_acts_with_the_mean_skill(api: TestClient, tiny_networks: Networks) -> None:
    driver = Driver(api, deterministic=True)
    driver.start()
    observation = np.array(state(0, 0), np.float32)
    embedding = drawn_embedding(Exploration.SWITCHING, 7, 0, 0, 2)
    skill = tiny_networks.meta_policy.choose_skill(observation, embedding, None, use_skill_prior=False)
    assert driver.act(0, 0, state(0, 0))["action"] == tiny_networks.decode(observation, skill).tolist()


@pytest.mark.parametrize("exploration", [Exploration.THOMPSON, Exploration.ALTERNATING])
def test_thompson_exploration_draws_from_the_posterior_once_there_was_a_reward(
    api: TestClient, tiny_networks: Networks, exploration: Exploration
) -> None:
    driver = Driver(api, conditioning_episodes=5, exploration=exploration.value)
    assert driver.session["exploration"] == exploration.value
    first = driver.run_episode(final_reward=0.0)
    assert {reply["task_version"] for reply in first} == {0}
    driver.run_episode(final_reward=1.0)
    kept = driver.run_episode(final_reward=1.0)
    assert [reply["task_version"] > 0 for reply in kept] == [exploration is Exploration.THOMPSON] * len(kept)
    if exploration is Exploration.ALTERNATING:  # number 2 keeps to the task prior
        embedding = drawn_embedding(exploration, 7, 2, 0, 2)
        observation = np.array(state(2, 0), np.float32)
        skill = tiny_networks.meta_policy.choose_skill(observation, embedding, skill_noise(7, 2, 0, 3), use_skill_prior=False)
        assert kept[0]["action"] == tiny_networks.decode(observation, skill).tolist()
    task, session = driver.get("/task"), driver.get()
    episode = driver.start()["episode"]
    reply = driver.act(episode, 0, state(episode, 0))
    assert (reply["phase"], reply["task_version"]) == ("exploring", session["context_size"])
    mean, scale = (np.array(task[name], np.float32) for name in ("mean", "scale"))
    embedding = mean + scale * drawn_embedding(Exploration.PRIOR, 7, episode, 0, 2)
    observation = np.array(state(episode, 0), np.float32)
    skill = tiny_networks.meta_policy.choose_skill(observation, embedding, skill_noise(7, episode, 0, 3), use_skill_prior=False)
    assert reply["action"] == tiny_networks.decode(observation, skill).tolist()


def test_a_session_explores_as_its_bundle_says_unless_it_says_otherwise(api: TestClient, tiny_networks: Networks) -> None:
    assert Driver(api).session["exploration"] == tiny_networks.bundle.manifest.exploration == "switching"
    assert Driver(api, exploration="prior").session["exploration"] == "prior"


def test_two_api_processes_serve_one_session(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    alone, shared = Driver(api, conditioning_episodes=1), Driver(api, conditioning_episodes=1)
    with TestClient(create_app(settings, {"tiny": tiny_networks})) as second:
        for _ in range(2):
            expected = alone.run_episode(final_reward=1.0)
            episode = shared.start()["episode"]
            found = [shared.act(episode, 0, state(episode, 0))]
            for step in range(7):
                shared.api = second if step % 2 else api
                outcome = {"reward": float(step == 6), "terminated": step == 6}
                found.append(shared.step(episode, step, state(episode, step + 1), **outcome))
            assert found == expected
