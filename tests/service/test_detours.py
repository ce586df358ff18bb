"""Sessions by Thompson sampling whose episodes never complete their task: some of them take a detour on their way."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.judgement import find_fall
from service.policies import Networks
from service.session_state import EpisodeRecord
from service.sessions_cli import main
from service.settings import Settings
from tests.conftest import Driver, state
from tests.service.learners import work_off, worker
from training.contract.bundle import Bundle
from training.contract.exploration import DETOUR_SKILLS, Exploration, detour_after, skill_noise

H, STEPS = 5, 22  # five skills; the last has two steps
REWARDED = (2, STEPS - 1)  # within the first skill, and by the last step
SEED, BEST, EPISODES = 7, 2.0, 8


def scheduled(episodes: int) -> dict[int, float]:
    """Which episodes are to take one, where each earns two and completes nothing, and what they have earned by then."""
    known = {"seed": SEED, "conditioning_episodes": 1, "returns": [BEST], "completed": [False]}
    found = {number: detour_after(Exploration.THOMPSON, episode=number, **known) for number in range(1, episodes)}  # type: ignore[arg-type]
    return {number: after for number, after in found.items() if after is not None}


def thinker(api: TestClient, **options: Any) -> Driver:
    return Driver(api, **{"exploration": "thompson", "conditioning_episodes": 1} | options)


def episode(driver: Driver, *, terminated: bool = False) -> list[Any]:
    """One whole episode with two rewards. Returns the action replies."""
    number = driver.start()["episode"]
    replies = [driver.act(number, 0, state(number, 0))]
    for step in range(STEPS):
        last = step == STEPS - 1
        outcome = {"reward": float(step in REWARDED), "terminated": last and terminated, "truncated": last and not terminated}
        replies.append(driver.step(number, step, state(number, step + 1), **outcome))
    return replies


def records(driver: Driver) -> list[EpisodeRecord]:
    store = driver.api.app.state.parts.store
    return store.episodes(store.load(driver.session["session_id"]).keys)


def test_skills_of_a_detour_come_from_the_plain_prior_and_the_session_goes_on_by_what_it_knows(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver, due = thinker(api), scheduled(EPISODES)
    episode(driver)
    work_off(worker(settings, tiny_networks))
    assert {after <= 1.0 for after in due.values()} == {True, False}, "one comes to its detour, another does not"
    assert len(due) < EPISODES - 1, "and others are to take none"
    for number in range(1, EPISODES):
        replies = episode(driver)
        versions, left = [reply["policy_version"] for reply in replies[:STEPS]], DETOUR_SKILLS * H
        if due.get(number, BEST) > 1.0:
            assert versions == [1] * STEPS
            continue
        assert versions == [1] * H + [0] * left + [1] * (STEPS - H - left)
        for step in range(H, H + left, H):
            observation = np.array(state(number, step), np.float32)
            noise = skill_noise(SEED, number, step, 3)
            chosen = tiny_networks.meta_policy.choose_skill(observation, np.zeros(2, np.float32), noise, use_skill_prior=True)
            assert replies[step]["action"] == tiny_networks.decode(observation, chosen).tolist()
    assert [record.versions_used for record in records(driver)] == [[0]] + [[] if number in due else [1] for number in range(1, EPISODES)]


def test_a_version_that_comes_during_a_detour_is_told_as_at_any_other_time(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver = thinker(api)
    number = next(number for number, after in scheduled(EPISODES).items() if after <= 1.0)
    for _ in range(number):
        episode(driver)
    driver.start()
    replies = [driver.act(number, 0, state(number, 0))]
    for step in range(STEPS - 1):
        if step == H + 1:
            work_off(worker(settings, tiny_networks))
        replies.append(driver.step(number, step, state(number, step + 1), reward=float(step in REWARDED)))
    assert [replies[step]["phase"] for step in (0, H, STEPS - 1)] == ["adapted", "adapted", "finetuning"]
    assert replies[STEPS - 1]["policy_version"] == 1


def test_a_detour_says_nothing_of_a_version() -> None:
    def record(number: int, returned: float, versions: list[int]) -> EpisodeRecord:
        return EpisodeRecord(number, 0, 1, 1, returned, "finetuning", versions)

    good = [record(number, 3.0, [1]) for number in range(10)]
    assert find_fall([*good, *(record(number, 0.0, [2]) for number in range(10, 15))], 2) is not None
    mixed = [record(10 + k, *((0.0, []) if k % 2 else (3.0, [2]))) for k in range(10)]
    assert find_fall([*good, *mixed], 2) is None


@pytest.mark.parametrize("asked", [{"deterministic": True}, {"exploration": "switching"}, {"finetuning": False}, "completes", "adapted"])
def test_a_session_that_completes_its_task_or_was_asked_for_something_else_takes_none(api: TestClient, asked: Any) -> None:
    driver = thinker(api, **(asked if isinstance(asked, dict) else {}))
    assert scheduled(EPISODES)
    episode(driver, terminated=asked == "completes")
    if asked == "adapted":
        driver.ok(api.patch(driver.path, json={"phase": asked}))
    for _ in range(EPISODES - 1):
        episode(driver, terminated=asked == "completes")
    assert all(record.versions_used for record in records(driver))


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
    for _ in range(EPISODES):
        episode(driver)
        work_off(worker(settings, tiny_networks))
    assert sum(not record.versions_used for record in records(driver)) == len(scheduled(EPISODES))
    assert main(["replay", driver.session["session_id"], "--bundle", str(tiny_bundle.path)]) == 0
    assert f"{EPISODES * STEPS} actions replayed, {EPISODES * STEPS} identical, 0 differ" in capsys.readouterr().out
