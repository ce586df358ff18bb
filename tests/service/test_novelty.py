"""Sessions that explore by novelty: where they have been is part of the session, and what they plan depends on nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.policies import MetaPolicy, Networks
from service.replay import replay
from service.session_log import read_log
from service.session_state import Session
from service.sessions_cli import _blank, main
from service.settings import Settings
from tests.conftest import Driver, state, transition
from tests.tiny_bundle import H, Z, exploring_by_novelty
from training.contract.bundle import Bundle
from training.contract.context import unpack_rows, unpack_vector
from training.contract.exploration import Exploration, drawn_embedding

OPTIONS = {"exploration": "novelty", "conditioning_episodes": 2}


@pytest.fixture
def explorer(api: TestClient) -> Driver:
    return Driver(api, **OPTIONS)


def stored(driver: Driver) -> Session:
    return driver.api.app.state.parts.store.load(driver.session["session_id"]).session


def planned(networks: Networks, episodes: int, steps: int) -> list[np.ndarray]:
    """The skills that a session with seed 7 plans in episodes of so many steps through the states of the tests' driver."""
    novelty, found = networks.belief.novelty, []
    places = novelty.begin()
    for episode in range(episodes):
        for step in range(0, steps, H):
            here = np.array(state(episode, step), np.float32)
            skill, places = novelty.plan(places, here, seed=7, episode=episode, skill_index=step // H, skill_dim=Z)
            found.append(skill)
    return found


def test_skills_are_those_planned_from_where_the_session_has_been(explorer: Driver, tiny_networks: Networks) -> None:
    chosen = []
    for episode in range(3):  # one more than it conditions for: there was no reward
        explorer.start()
        for step in range(12):
            explorer.act(episode, step, state(episode, step))
            if step % H == 0:
                chosen.append(unpack_vector(stored(explorer).skills[-1].skill))
            explorer.ok(explorer.post("transitions", transitions=[transition(episode, step, state(episode, step + 1))]))
        explorer.ok(explorer.post("episodes/end"))
    np.testing.assert_array_equal(chosen, planned(tiny_networks, 3, 12))
    assert explorer.get()["phase"] == "exploring"


def test_once_rewarded_it_forgets_where_it_has_been_and_acts_under_the_posterior(explorer: Driver) -> None:
    explorer.run_episode(steps=7)
    assert len(unpack_rows(stored(explorer).explored.seen, 2))
    explorer.run_episode(steps=7, final_reward=1.0)
    explorer.start()
    explorer.act(2, 0, state(2, 0))
    session = stored(explorer)
    assert session.phase == "adapted"
    assert (session.explored.seen, session.explored.aimed) == (b"", b"")
    assert session.explored.route, "but not the way to the reward"


OVERDUE = 10
"""Number of the first skill that is overdue after an episode of two skills: its route has three points."""


def overdue_episode(explorer: Driver, skills: int = OVERDUE + 2) -> list[np.ndarray]:
    """The second episode of a session whose first was rewarded. Returns the skills that it chose."""
    explorer.run_episode(steps=7, final_reward=1.0)
    explorer.start()
    chosen = []
    for step in range(skills * H):
        explorer.act(1, step, state(1, step))
        if step % H == 0:
            chosen.append(unpack_vector(stored(explorer).skills[-1].skill))
        explorer.ok(explorer.post("transitions", transitions=[transition(1, step, state(1, step + 1))]))
    return chosen


def test_an_overdue_episode_goes_back_along_the_way_to_the_reward(explorer: Driver, tiny_networks: Networks) -> None:
    chosen = overdue_episode(explorer)
    novelty = tiny_networks.belief.novelty
    places = novelty.with_route([np.array([state(0, 0), state(0, 5), state(0, 7)], np.float32)])
    assert len(places.route) == 3
    for index, skill in enumerate(chosen):
        here = np.array(state(1, index * H), np.float32)
        places = novelty.on_the_way(places, here, skill_index=index)
        back = novelty.retrace(places, here, seed=7, episode=1, skill_index=index, skill_dim=Z)
        assert np.array_equal(skill, back) == (index >= OVERDUE), index
    assert stored(explorer).beyond_from == OVERDUE * H
    explorer.ok(explorer.post("episodes/end"))
    (_, record) = explorer.api.app.state.parts.store.episodes(explorer.api.app.state.parts.store.load(explorer.session["session_id"]).keys)
    assert record.beyond_from == OVERDUE * H


def test_the_episode_after_an_overdue_one_goes_back_at_once_and_the_next_tries_again(explorer: Driver, tiny_networks: Networks) -> None:
    overdue_episode(explorer)
    chosen = []
    for episode in (2, 3):
        explorer.start()
        explorer.act(episode, 0, state(episode, 0))
        chosen.append((stored(explorer).beyond_from, unpack_vector(stored(explorer).skills[-1].skill)))
        explorer.step(episode, 0, state(episode, 1), truncated=True)
    assert [beyond_from for beyond_from, _ in chosen] == [0, -1]
    novelty, here = tiny_networks.belief.novelty, np.array(state(2, 0), np.float32)
    places = novelty.with_route([np.array([state(0, 0), state(0, 5), state(0, 7)], np.float32)])
    places = novelty.on_the_way(places, here, skill_index=0)
    np.testing.assert_array_equal(chosen[0][1], novelty.retrace(places, here, seed=7, episode=2, skill_index=0, skill_dim=Z))


def test_a_replay_goes_back_along_the_same_way(
    explorer: Driver, settings: Settings, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overdue_episode(explorer)
    monkeypatch.setenv("SKILLET_REDIS_URL", str(settings.redis_url))
    assert main(["replay", explorer.session["session_id"], "--bundle", str(tiny_bundle.path)]) == 0
    assert "67 actions replayed, 67 identical, 0 differ" in capsys.readouterr().out


def test_a_replay_goes_back_along_the_same_way_though_the_weights_before_are_gone(explorer: Driver, tiny_networks: Networks) -> None:
    overdue_episode(explorer)
    store = explorer.api.app.state.parts.store
    loaded = store.load(explorer.session["session_id"])
    asked = 0

    def policies(version: int) -> MetaPolicy | None:
        nonlocal asked
        asked += 1
        return None if 2 < asked <= 2 + OVERDUE else tiny_networks.meta_policy  # those of the second episode, until it was overdue

    context = store.context(loaded.keys, 0, loaded.session.rows, tiny_networks.layout.width)
    again = _blank(loaded.session)
    found = replay(again, read_log(store.redis, loaded.keys), tiny_networks, policies, context)
    assert (found.unknown, found.identical, found.differences) == (OVERDUE, found.actions, [])
    assert again.explored.track == loaded.session.explored.track


def test_an_episode_that_has_earned_something_is_not_overdue(explorer: Driver) -> None:
    explorer.run_episode(steps=7, final_reward=1.0)
    explorer.start()
    for step in range((OVERDUE + 2) * H):
        explorer.act(1, step, state(1, step))
        explorer.ok(explorer.post("transitions", transitions=[transition(1, step, state(1, step + 1), reward=float(step == 3))]))
    assert stored(explorer).beyond_from == -1


@pytest.mark.parametrize("forced", [False, True])
def test_it_does_not_go_back_where_the_client_asked_for_something_else(api: TestClient, forced: bool) -> None:
    explorer = Driver(api, **OPTIONS, deterministic=not forced)
    if forced:
        explorer.ok(explorer.api.patch(explorer.path, json={"phase": "adapted"}))
    overdue_episode(explorer)
    assert stored(explorer).beyond_from == -1


@pytest.mark.parametrize("unknown", ["reward", "transitions"])
def test_an_episode_of_which_not_all_is_known_is_not_overdue(explorer: Driver, unknown: str) -> None:
    explorer.run_episode(steps=7, final_reward=1.0)
    explorer.start()
    for step in range((OVERDUE + 2) * H):
        explorer.act(1, step, state(1, step))
        if unknown == "reward" or step < H:
            outcome = {"reward": None} if unknown == "reward" and step == 3 else {}
            explorer.ok(explorer.post("transitions", transitions=[transition(1, step, state(1, step + 1), **outcome)]))
    assert stored(explorer).beyond_from == -1


def test_deterministic_sessions_do_not_plan(api: TestClient, tiny_networks: Networks) -> None:
    explorer = Driver(api, **OPTIONS, deterministic=True)
    explorer.start()
    explorer.act(0, 0, state(0, 0))
    session, here = stored(explorer), np.array(state(0, 0), np.float32)
    assert session.explored is None
    embedding = drawn_embedding(Exploration.SWITCHING, 7, 0, 0, 2)
    mean = tiny_networks.meta_policy.choose_skill(here, embedding, None, use_skill_prior=False)
    np.testing.assert_array_equal(unpack_vector(session.skills[-1].skill), mean)


def test_other_explorations_have_no_places(driver: Driver) -> None:
    driver.run_episode()
    assert stored(driver).explored is None


@pytest.fixture
def by_default(settings: Settings, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[TestClient]:
    """A service whose bundle explores by novelty."""
    networks = Networks(exploring_by_novelty(tiny_bundle, tmp_path / "novelty"))
    with TestClient(create_app(settings, {"tiny": networks}), raise_server_exceptions=False) as client:
        yield client


def test_a_bundle_may_make_it_the_default(by_default: TestClient) -> None:
    explorer = Driver(by_default)
    assert explorer.session["exploration"] == "novelty"
    explorer.run_episode(steps=7)
    assert stored(explorer).explored is not None
