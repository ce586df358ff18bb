"""Learners that die on the way: who takes over where, and what is given up."""

import threading
import time

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from redis.exceptions import TimeoutError

from service.jobs import MAX_ATTEMPTS
from service.keys import SessionKeys
from service.policies import Networks
from service.settings import Settings
from tests.conftest import Driver
from tests.service.learners import ready_to_learn, same, stored_weights, work_off, worker
from training.finetuning import Finetuner


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A checkpoint after every slice of few updates, and leases that end soon."""
    return settings.model_copy(update={"slice_updates": 3, "checkpoint_interval_s": 0.0, "lease_s": 1.0, "kept_versions": 2})


@pytest.fixture
def undisturbed(api: TestClient, settings: Settings, tiny_networks: Networks) -> Driver:
    """What comes out when no learner dies: two episodes before the first update, one after."""
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks, "undisturbed")
    work_off(learner)
    driver.run_episode()
    work_off(learner)
    return driver


@pytest.mark.parametrize("slices_before_death", [1, 3, 4, 5, 6, 7])
def test_a_learner_started_again_under_its_name_goes_on_where_it_died(
    api: TestClient, settings: Settings, tiny_networks: Networks, undisturbed: Driver, slices_before_death: int
) -> None:
    driver, doomed = ready_to_learn(api), worker(settings, tiny_networks)
    for _ in range(slices_before_death):
        doomed.turn(1)
    again = worker(settings, tiny_networks)
    work_off(again)
    driver.run_episode()
    work_off(again)
    assert same(stored_weights(api, driver, 2), stored_weights(api, undisturbed, 2))
    assert driver.get("/finetuning")["updates"] == undisturbed.get("/finetuning")["updates"] == 16
    assert api.app.state.parts.store.redis.xlen("skillet:jobs") == 0


def test_another_learner_takes_over_when_the_lease_has_run_out(
    api: TestClient, settings: Settings, tiny_networks: Networks, undisturbed: Driver
) -> None:
    driver, doomed = ready_to_learn(api), worker(settings, tiny_networks, "doomed")
    doomed.turn(1)
    other = worker(settings, tiny_networks, "other")
    assert other.turn(1) is False
    deadline = time.monotonic() + 10
    while driver.get("/finetuning")["episodes_learned"] < 1 and time.monotonic() < deadline:
        other.turn(20)
    assert driver.get("/policy")["current"] == 1
    doomed.turn(1)  # a learner that only seemed dead must not write any more
    assert driver.get("/policy")["current"] == 1
    driver.run_episode()
    work_off(other)
    assert same(stored_weights(api, driver, 2), stored_weights(api, undisturbed, 2))


def test_a_lease_that_ran_out_in_a_long_pause_is_taken_again(
    api: TestClient, settings: Settings, tiny_networks: Networks, undisturbed: Driver
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    redis, lease = api.app.state.parts.store.redis, f"skillet:{{{driver.session['session_id']}}}:lease"
    for _ in range(30):  # at whatever point of its work
        redis.delete(lease)
        learner.turn(1)
    work_off(learner)
    driver.run_episode()
    work_off(learner)
    assert same(stored_weights(api, driver, 2), stored_weights(api, undisturbed, 2))
    assert redis.xlen("skillet:jobs") == 0


def test_a_stopped_learner_hands_its_jobs_back_at_once(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, stopped = ready_to_learn(api), worker(settings, tiny_networks, "stopped")
    stopped.turn(1)
    stopped.hand_back()
    assert driver.get("/finetuning")["state"] == "queued"
    work_off(worker(settings, tiny_networks, "next"))
    status = driver.get("/finetuning")
    assert (status["updates"], status["policy_version"]) == (12, 1)


def test_a_stopped_learner_hands_back_what_waits_for_a_lease(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, busy, stopped = ready_to_learn(api), worker(settings, tiny_networks, "busy"), worker(settings, tiny_networks, "stopped")
    busy.turn(1)  # has the lease
    driver.run_episode()
    stopped.turn(1)  # has the next job, and waits for the lease
    work_off(busy)
    driver.run_episode()  # learned by nobody yet: its job is the one that waits
    stopped.hand_back()
    work_off(worker(settings, tiny_networks, "next"))
    status = driver.get("/finetuning")
    assert status["episodes_learned"] == status["episodes_completed"]
    assert status["state"] == "idle"


class Death(BaseException):
    """Ends a worker of these tests as kill -9 ends a process: it tidies nothing up."""


def test_a_job_that_keeps_killing_its_learners_is_given_up(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ready_to_learn(api)

    def die(finetuner: Finetuner, count: int) -> None:
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "update", die)
        for _ in range(MAX_ATTEMPTS):
            with pytest.raises(Death):
                worker(settings, tiny_networks).turn(1)
    work_off(worker(settings, tiny_networks))
    status = driver.get("/finetuning")
    assert status["state"] == "failed"
    assert "died" in status["error"]
    assert api.app.state.parts.store.redis.xlen("skillet:jobs") == 0
    driver.run_episode()
    work_off(worker(settings, tiny_networks))
    assert driver.get("/finetuning")["state"] == "idle"


def test_a_job_that_gets_further_is_not_given_up_however_often_its_learner_dies(
    api: TestClient, settings: Settings, tiny_networks: Networks, undisturbed: Driver
) -> None:
    driver = ready_to_learn(api)
    often = settings.model_copy(update={"slice_updates": 1, "checkpoint_interval_s": 0.0})
    for _ in range(2 * MAX_ATTEMPTS):
        worker(often, tiny_networks).turn(1)
    work_off(worker(often, tiny_networks))
    driver.run_episode()
    work_off(worker(often, tiny_networks))
    assert same(stored_weights(api, driver, 2), stored_weights(api, undisturbed, 2))


def test_a_learner_that_loses_redis_over_and_over_has_not_died(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, learner, stop = ready_to_learn(api), worker(settings, tiny_networks), threading.Event()
    lost = 0

    def lose_redis(finetuner: Finetuner, count: int) -> None:
        nonlocal lost
        lost += 1
        if lost > MAX_ATTEMPTS:
            stop.set()
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr("service.worker._RECONNECT_S", 0.0)
        patch.setattr(Finetuner, "update", lose_redis)
        learner.run(stop)
    assert lost == MAX_ATTEMPTS + 1
    learner.open()
    work_off(learner)
    assert driver.get("/finetuning")["updates"] == 12


def test_sessions_beside_one_that_kills_its_learners_are_not_given_up(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, *others = [ready_to_learn(api, seed=seed) for seed in (1, 2, 3)]
    update = Finetuner.update
    doomed: list[Finetuner] = []

    def die_first(finetuner: Finetuner, count: int) -> dict[str, float]:
        if not doomed or any(finetuner is each for each in doomed):
            doomed.append(finetuner)
            raise Death
        return update(finetuner, count)

    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "update", die_first)
        for _ in range(MAX_ATTEMPTS):  # the same session each time: it goes first
            doomed.clear()
            with pytest.raises(Death):
                worker(settings, tiny_networks).turn(1)
    work_off(worker(settings, tiny_networks))
    assert poison.get("/finetuning")["state"] == "failed"
    assert [driver.get("/finetuning")["updates"] for driver in others] == [12, 12]


def lose_leases(monkeypatch: pytest.MonkeyPatch, redis: "Redis", session: SessionKeys, times: int) -> list[Finetuner]:
    """Let the lease of a session, the first that learns, run out in so many of its slices. Returns the learner, once for each."""
    update, slow = Finetuner.update, list[Finetuner]()

    def lose_the_lease(finetuner: Finetuner, count: int) -> dict[str, float]:
        losses = update(finetuner, count)
        if len(slow) < times and (not slow or finetuner is slow[0]):
            slow.append(finetuner)
            redis.delete(session.lease)
        return losses

    monkeypatch.setattr(Finetuner, "update", lose_the_lease)
    return slow


def test_a_learner_whose_lease_runs_out_in_its_first_slice_finishes_that_session_first(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [ready_to_learn(api, seed=seed) for seed in (1, 2)]
    slow = lose_leases(monkeypatch, api.app.state.parts.store.redis, SessionKeys(first.session["session_id"]), times=1)
    learner = worker(settings, tiny_networks)
    learner.turn(1)
    assert slow
    learner.turn(1)
    assert first.get("/finetuning")["updates"] > 3  # a slice has up to three, fewer where the machine is slow
    assert second.get("/finetuning")["updates"] == 0
    learner.turn(1)
    assert second.get("/finetuning")["updates"] > 0


def test_a_session_whose_lease_runs_out_again_and_again_does_not_hold_up_the_others(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [ready_to_learn(api, seed=seed) for seed in (1, 2)]
    slow = lose_leases(monkeypatch, api.app.state.parts.store.redis, SessionKeys(first.session["session_id"]), times=3)
    learner = worker(settings, tiny_networks)
    for _ in range(3):
        learner.turn(1)
    assert len(slow) == 2
    assert second.get("/finetuning")["updates"] == 3
