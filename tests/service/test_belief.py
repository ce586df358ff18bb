"""Sessions that explore by a belief over tasks, or by novelty and weigh the same particles."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.policies import Networks
from service.replay import replay
from service.session_log import Began, read_log
from service.session_state import Session
from service.sessions_cli import _blank, main
from service.settings import Settings
from tests.conftest import Driver, state, transition
from tests.tiny_bundle import without_belief
from training.contract.belief import FOLLOW_SKILLS
from training.contract.bundle import Bundle
from training.contract.context import unpack_rows

OPTIONS = {"exploration": "belief", "conditioning_episodes": 3}


@pytest.fixture(params=["belief", "novelty"])
def believer(api: TestClient, request: pytest.FixtureRequest) -> Driver:
    return Driver(api, **OPTIONS | {"exploration": request.param})


@pytest.fixture
def bare(settings: Settings, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[TestClient]:
    """A service whose bundle offers no belief."""
    networks = Networks(without_belief(tiny_bundle, tmp_path / "bare"))
    with TestClient(create_app(settings, {"tiny": networks}), raise_server_exceptions=False) as client:
        yield client


def stored(driver: Driver) -> Session:
    return driver.api.app.state.parts.store.load(driver.session["session_id"]).session


def plausibility(driver: Driver) -> np.ndarray:
    return unpack_rows(stored(driver).followed.plausibility, 1)[:, 0]


def replayed(driver: Driver, networks: Networks) -> Session:
    """What a replay of the session's log leaves, every action of it being identical."""
    store = driver.api.app.state.parts.store
    loaded = store.load(driver.session["session_id"])
    context = store.context(loaded.keys, 0, loaded.session.rows, networks.layout.width)
    again = _blank(loaded.session)
    found = replay(again, read_log(store.redis, loaded.keys), networks, lambda _: networks.meta_policy, context)
    assert found.actions == found.identical > 0
    return again


def test_a_bundle_without_a_reward_decoder_says_what_it_offers(bare: TestClient) -> None:
    refused = bare.post("/v1/sessions", json=OPTIONS)
    assert refused.status_code == 422
    problem = refused.json()
    assert problem["code"] == "invalid_request"
    assert (problem["expected"], problem["received"]) == (["prior", "switching", "thompson", "alternating"], "belief")
    assert Driver(bare).session["exploration"] == "switching"


def test_what_is_seen_in_vain_stays_ruled_out_in_the_episodes_that_follow(believer: Driver, tiny_networks: Networks) -> None:
    believer.run_episode(steps=12)
    belief = tiny_networks.belief
    expected = belief.begin().plausibility
    for step in (0, 5, 10):  # the states in which skills were chosen
        expected = belief.seen_in_vain(expected, np.array(state(0, step), np.float32))
    np.testing.assert_allclose(plausibility(believer), expected, atol=1e-6)
    assert expected.min() < 0.9
    believer.run_episode(steps=2)
    assert (plausibility(believer) <= expected + 1e-6).all()


@pytest.mark.parametrize("unknown", ["reward", "transitions"])
def test_a_state_whose_reward_is_not_known_yet_is_not_seen_in_vain(believer: Driver, tiny_networks: Networks, unknown: str) -> None:
    believer.start()
    for step in range(14):
        believer.act(0, step, state(0, step))
        if unknown == "reward" or step < 3:
            reward = None if unknown == "reward" and step == 4 else 0.0
            believer.ok(believer.post("transitions", transitions=[transition(0, step, state(0, step + 1), reward=reward)]))
    belief = tiny_networks.belief
    expected = belief.seen_in_vain(belief.begin().plausibility, np.array(state(0, 0), np.float32))
    np.testing.assert_array_equal(plausibility(believer), expected)  # not steps 5 and 10
    assert replayed(believer, tiny_networks).followed == stored(believer).followed
    late = [{"episode": 0, "step": 4, "reward": 0.0}]
    if unknown == "reward":
        believer.ok(believer.post("rewards", rewards=late))
    else:
        believer.ok(believer.post("transitions", transitions=[transition(0, step, state(0, step + 1)) for step in range(3, 14)]))
    for step in range(14, 44):
        believer.act(0, step, state(0, step))
        believer.ok(believer.post("transitions", transitions=[transition(0, step, state(0, step + 1))]))
    for step in range(15, 44, 5):
        expected = belief.seen_in_vain(expected, np.array(state(0, step), np.float32))
    np.testing.assert_array_equal(plausibility(believer), expected)
    assert replayed(believer, tiny_networks).followed == stored(believer).followed


def test_a_deterministic_session_by_novelty_tells_what_it_has_seen_in_vain(api: TestClient, tiny_networks: Networks) -> None:
    believer = Driver(api, **OPTIONS | {"exploration": "novelty"}, deterministic=True)
    believer.run_episode(steps=7)
    expected = tiny_networks.belief.begin().plausibility
    for step in (0, 5):
        expected = tiny_networks.belief.seen_in_vain(expected, np.array(state(0, step), np.float32))
    np.testing.assert_array_equal(plausibility(believer), expected)
    assert believer.get("/task")["belief"]["effective_particles"] < 7


def test_a_session_acts_with_the_particle_that_it_follows(api: TestClient, tiny_networks: Networks) -> None:
    believer = Driver(api, **OPTIONS)
    believer.start()
    chosen = set()
    for step in range(FOLLOW_SKILLS * 5 + 1):
        believer.act(0, step, state(0, step % 10))
        believer.ok(believer.post("transitions", transitions=[transition(0, step, state(0, (step + 1) % 10))]))
        chosen.add(stored(believer).followed.particle)
    assert len(chosen) > 1, "time was up at least once"
    assert chosen <= set(range(len(tiny_networks.belief.particles)))


def test_after_a_reward_the_posteriors_mean_and_draws_take_turns(believer: Driver, tiny_networks: Networks) -> None:
    believer.run_episode(steps=7, final_reward=1.0)
    before = plausibility(believer)
    believer.start()
    believer.act(1, 0, state(1, 0))
    session, task = stored(believer), believer.get("/task")
    np.testing.assert_allclose(unpack_rows(session.embedding, 2)[0], task["mean"], atol=1e-6)
    assert session.task_version == task["version"] == 2
    np.testing.assert_array_equal(plausibility(believer), before)


def test_the_belief_is_told_with_the_task(believer: Driver, driver: Driver, tiny_networks: Networks) -> None:
    assert driver.get("/task")["belief"] is None
    untouched = believer.get("/task")["belief"]
    assert untouched["particles"] == 7
    assert untouched["effective_particles"] == pytest.approx(7)
    assert untouched["entropy"] == pytest.approx(np.log(7), rel=1e-5)
    believer.run_episode(steps=12)
    vain = believer.get("/task")["belief"]
    weights = plausibility(believer) / plausibility(believer).sum()
    assert [best["weight"] for best in vain["best"]] == pytest.approx(sorted(weights, reverse=True)[:5], rel=1e-4)
    assert vain["best"][0]["task_embedding"] == pytest.approx(tiny_networks.belief.particles[weights.argmax()].tolist())
    assert vain["entropy"] < untouched["entropy"]
    believer.run_episode(steps=12, final_reward=1.0)
    rewarded = believer.get("/task")["belief"]
    where = np.array(state(1, 12), np.float32)[None]
    expected = tiny_networks.belief.weights(plausibility(believer), where)
    assert [best["weight"] for best in rewarded["best"]] == pytest.approx(np.sort(expected)[::-1][:5].tolist(), rel=1e-4)


def test_two_processes_that_take_turns_answer_as_one_would(
    believer: Driver, api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    def drive(processes: list[Driver]) -> list[object]:
        told = []
        for episode in range(4):
            processes[episode % len(processes)].start()
            reply = processes[0].act(episode, 0, state(episode, 0))
            for step in range(12):
                told.append(reply["action"])
                last, reward = step == 11, 1.0 if episode == 2 and step == 11 else 0.0
                following = processes[step % len(processes)]
                reply = following.step(episode, step, state(episode, step + 1), terminated=last, reward=reward)
        return told

    options = OPTIONS | {"exploration": believer.session["exploration"]}
    alone = drive([Driver(api, **options)])
    with TestClient(create_app(settings, {"tiny": tiny_networks})) as elsewhere:
        other = Driver(elsewhere, **options)
        other.session, other.path = believer.session, believer.path
        assert drive([believer, other]) == alone


def test_a_replay_is_identical_to_the_bit(
    believer: Driver, settings: Settings, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    believer.run_episode(steps=12)
    believer.run_episode(steps=12, final_reward=1.0)
    believer.run_episode(steps=12)
    monkeypatch.setenv("SKILLET_REDIS_URL", str(settings.redis_url))
    assert main(["replay", believer.session["session_id"], "--bundle", str(tiny_bundle.path)]) == 0
    assert "36 actions replayed, 36 identical, 0 differ" in capsys.readouterr().out
    parts = believer.api.app.state.parts
    assert read_log(parts.store.redis, parts.store.load(believer.session["session_id"]).keys)


def test_a_replay_knows_when_a_late_reward_became_known(
    believer: Driver, settings: Settings, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    believer.start()
    believer.act(0, 0, state(0, 0))
    for step in range(24):
        believer.step(0, step, state(0, step + 1), reward=None if step == 1 else 0.0)
        if step == 13:
            believer.ok(believer.post("rewards", rewards=[{"episode": 0, "step": 1, "reward": 1.0}]))
    believer.step(0, 24, state(0, 25), truncated=True)
    believer.run_episode(steps=12)
    monkeypatch.setenv("SKILLET_REDIS_URL", str(settings.redis_url))
    assert main(["replay", believer.session["session_id"], "--bundle", str(tiny_bundle.path)]) == 0
    assert "37 actions replayed, 37 identical, 0 differ" in capsys.readouterr().out


def test_a_replay_is_identical_though_the_first_episodes_are_no_longer_in_the_log(believer: Driver, tiny_networks: Networks) -> None:
    for _ in range(3):
        believer.run_episode(steps=42)
    store = believer.api.app.state.parts.store
    store.redis.ltrim(store.load(believer.session["session_id"]).keys.log, 60, -1)
    again = replayed(believer, tiny_networks)
    kept = stored(believer)
    assert (again.followed, again.explored) == (kept.followed, kept.explored)
    believer.run_episode(steps=12, final_reward=1.0)
    believer.run_episode(steps=12)
    replayed(believer, tiny_networks)
    *_, last = (event for event in read_log(store.redis, store.load(kept.session_id).keys) if isinstance(event, Began))
    assert (last.plausibility, last.seen) == (b"", b""), "once rewarded, it is not needed"


def test_conditioning_episodes_are_the_bundles_unless_the_client_says_otherwise(api: TestClient, tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.conditioning_episodes == 20
    assert Driver(api).session["conditioning_episodes"] == 20
    assert Driver(api, conditioning_episodes=0).session["conditioning_episodes"] == 0
