"""Jobs of the learner: queued once, taken in turn, dropped with their session, queued again when lost."""

import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError

from service.errors import PolicyOutputInvalid
from service.learning import SessionLearner, Turn
from service.policies import Networks
from service.session_routes import pause_s
from service.settings import Settings
from tests.conftest import Driver, state, transition
from tests.service.learners import ready_to_learn, same, stored_weights, work_off, worker
from training.finetuning import Finetuner


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A checkpoint after every slice of few updates, and leases that end soon."""
    return settings.model_copy(update={"slice_updates": 3, "checkpoint_interval_s": 0.0, "lease_s": 1.0, "kept_versions": 2})


def test_a_learner_that_cannot_keep_up_publishes_all_the_same(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner = ready_to_learn(api), worker(settings.model_copy(update={"slice_updates": 2}), tiny_networks)
    for _ in range(30):
        driver.run_episode()
        learner.turn(1)
    assert driver.get("/finetuning")["updates"] < 12 + 4 * 15  # half of what was due by then
    published = [record["metrics"]["updates"] for record in driver.get("/policy")["versions"][1:]]
    assert len(published) > 3
    assert published[0] >= 12
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(published))
    work_off(learner)
    status, newest = driver.get("/finetuning"), driver.get("/policy")["versions"][-1]
    assert (status["state"], status["episodes_learned"], newest["metrics"]["updates"]) == ("idle", 31, status["updates"])


def test_a_session_that_is_closed_while_its_version_is_checked_is_no_failure(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver, closed = ready_to_learn(api), []

    def close(*_: Any) -> None:
        closed.append(driver.ok(api.delete(driver.path)))

    monkeypatch.setattr("service.learning.find_fault", close)
    work_off(worker(settings, tiny_networks))
    assert closed
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_queueing_a_session_again_is_the_same_job(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver = ready_to_learn(api)
    parts = api.app.state.parts
    jobs, keys = parts.adaptation._jobs, parts.store.load(driver.session["session_id"]).keys
    assert jobs.enqueue(keys) == jobs.enqueue(keys)
    driver.run_episode()
    assert parts.store.redis.xlen("skillet:jobs") == 1
    work_off(worker(settings, tiny_networks))
    assert parts.store.redis.xlen("skillet:jobs") == 0
    assert driver.get("/finetuning")["episodes_learned"] == 2


def test_a_learner_that_is_faster_than_the_queueing_process_leaves_no_job_noted_as_waiting(api: TestClient) -> None:
    driver = ready_to_learn(api)
    parts = api.app.state.parts
    jobs, keys = parts.adaptation._jobs, parts.store.load(driver.session["session_id"]).keys
    rounds, taken = 200, threading.Semaphore(0)
    jobs.open()
    first = jobs.take("fast", None)
    assert first is not None
    jobs.started(keys, first.token)
    jobs.finish(first.message_id)

    def take_at_once() -> None:
        for _ in range(rounds):
            claim = jobs.take("fast", 5000)
            assert claim is not None
            jobs.started(keys, claim.token)
            jobs.finish(claim.message_id)
            taken.release()

    learner = threading.Thread(target=take_at_once)
    learner.start()
    for _ in range(rounds):
        jobs.enqueue(keys)
        assert taken.acquire(timeout=10)
        assert parts.store.redis.hget(keys.finetuning, "queued") is None
    learner.join()


@pytest.mark.parametrize(
    ("options", "reward", "forced"),
    [
        ({"conditioning_episodes": 2}, 1.0, None),
        ({"conditioning_episodes": 1}, 0.0, None),
        ({"conditioning_episodes": 1, "finetuning": False}, 1.0, None),
        ({"conditioning_episodes": 1}, 1.0, "adapted"),
        ({"conditioning_episodes": 0}, 1.0, "exploring"),
    ],
)
def test_a_session_that_is_not_to_learn_is_not_queued(
    api: TestClient, options: dict[str, object], reward: float, forced: str | None
) -> None:
    driver = Driver(api, **options)
    driver.ok(api.patch(driver.path, json={"phase": forced}))
    driver.run_episode(final_reward=reward)
    assert api.app.state.parts.store.redis.xlen("skillet:jobs") == 0
    began = time.monotonic()
    assert driver.get("/finetuning?wait_s=20")["state"] == "idle"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("paused", [False, True])
def test_a_session_that_is_told_not_to_learn_while_it_does_is_idle(
    api: TestClient, settings: Settings, tiny_networks: Networks, paused: bool
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    learner.turn(1)
    assert driver.get("/finetuning")["state"] == "running"
    driver.ok(api.patch(f"{driver.path}/finetuning", json={"paused": paused}))
    driver.ok(api.patch(driver.path, json={"phase": "adapted"}))
    work_off(learner)
    driver.ok(api.patch(f"{driver.path}/finetuning", json={"paused": False}))
    status = driver.get("/finetuning?wait_s=20")
    assert (status["state"], status["episodes_completed"], status["episodes_learned"]) == ("idle", 1, 0)
    driver.ok(api.patch(driver.path, json={"phase": None}))
    work_off(learner)
    assert driver.get("/finetuning")["episodes_learned"] == 1


def test_a_closed_session_is_dropped_by_its_learner_and_leaves_nothing(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    learner.turn(1)
    driver.ok(api.delete(driver.path))
    work_off(learner)
    redis = api.app.state.parts.store.redis
    left = [key.decode().rpartition(":")[2] for key in redis.scan_iter(f"*{driver.session['session_id']}*")]
    assert left == ["known"]
    assert redis.xlen("skillet:jobs") == 0


def test_everything_of_a_session_expires_with_it(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver = ready_to_learn(api, ttl_s=1000)
    work_off(worker(settings, tiny_networks))
    driver.run_episode()
    redis = api.app.state.parts.store.redis
    keys = [key for key in redis.scan_iter(f"*{driver.session['session_id']}*") if not key.endswith(b"known")]
    assert {key.rpartition(b":")[2] for key in keys} >= {b"session", b"context", b"episodes", b"task", b"policy", b"weights", b"checkpoint"}
    assert all(0 < redis.pttl(key) <= 1_000_000 for key in keys)


def test_fine_tuning_that_raises_is_reported_and_tried_again_with_the_next_episode(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "update", lambda self, count: 1 / 0)
        work_off(learner)
    status = driver.get("/finetuning?wait_s=20")
    assert (status["state"], status["error"]) == ("failed", "ZeroDivisionError: division by zero")
    driver.run_episode()
    work_off(learner)
    status = driver.get("/finetuning")
    assert (status["state"], status["error"], status["episodes_learned"]) == ("idle", None, 2)


def test_a_session_whose_bundle_the_learner_has_not_is_failed_with_the_reason(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    learner._bundles = {}
    work_off(learner)
    status = driver.get("/finetuning")
    assert status["state"] == "failed"
    assert "bundle tiny" in status["error"]


def test_sessions_take_turns(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    drivers = [ready_to_learn(api, seed=seed) for seed in (1, 2, 3)]
    learner = worker(settings, tiny_networks)
    for _ in range(7):
        learner.turn(1)
    updates = [driver.get("/finetuning")["updates"] for driver in drivers]
    assert all(0 < done < 12 for done in updates)
    work_off(learner)
    assert [driver.get("/policy")["current"] for driver in drivers] == [1, 1, 1]
    weights = [stored_weights(api, driver, 1) for driver in drivers]
    assert not same(weights[0], weights[1])


def test_waiting_ends_when_the_learner_has_caught_up_or_the_time_is_over(
    api: TestClient, settings: Settings, tiny_networks: Networks
) -> None:
    driver = ready_to_learn(api)
    began = time.monotonic()
    assert driver.get("/finetuning?wait_s=0.3")["episodes_learned"] == 0
    assert 0.3 <= time.monotonic() - began < 2
    work_off(worker(settings, tiny_networks))
    began = time.monotonic()
    assert driver.get("/finetuning?wait_s=20")["episodes_learned"] == 1
    assert time.monotonic() - began < 2


def test_a_request_that_waits_queues_its_session_now_and_then_and_looks_less_often_the_longer_it_waits(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, parts = ready_to_learn(api), api.app.state.parts
    looks, queued = [], []
    load = parts.store.load
    monkeypatch.setattr(parts.store, "load", lambda session_id: looks.append(time.monotonic()) or load(session_id))
    monkeypatch.setattr(parts.adaptation, "queue_if_due", queued.append)
    driver.get("/finetuning?wait_s=1.3")
    assert len(queued) == 2
    assert 10 < len(looks) < 50
    assert looks[1] - looks[0] < 0.1


def test_the_more_requests_wait_the_less_often_each_of_them_looks() -> None:
    def mean(waited_s: float, waits: int) -> float:
        return float(np.mean([pause_s(0.02, waited_s, waits) for _ in range(1000)]))

    assert [mean(0.0, 1), mean(0.1, 4)] == pytest.approx([0.02, 0.0225], rel=0.1)
    assert mean(0.0, 100) == pytest.approx(0.5, rel=0.1)
    assert mean(60.0, 1) == pytest.approx(0.5, rel=0.1)
    assert mean(60.0, 10_000) == pytest.approx(2.0, rel=0.1)
    assert pause_s(5.0, 0.0, 1) == 5.0


def test_a_learner_at_work_catches_up_after_each_episode(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver, learner, stop = ready_to_learn(api), worker(settings, tiny_networks), threading.Event()
    running = threading.Thread(target=learner.run, args=(stop,))
    running.start()
    try:
        for count in range(1, 6):
            status = driver.get("/finetuning?wait_s=20")
            assert (status["episodes_learned"], status["state"]) == (count, "idle")
            driver.run_episode(steps=2)
    finally:
        stop.set()
        running.join()


def test_a_mark_without_a_job_is_not_believed_for_long(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ready_to_learn(api)
    redis = api.app.state.parts.store.redis
    redis.delete("skillet:jobs")
    assert driver.get("/finetuning")["state"] == "queued"
    assert redis.xlen("skillet:jobs") == 0
    monkeypatch.setattr("service.jobs.STALE_JOB_S", 0)
    assert driver.get("/finetuning")["state"] == "queued"
    work_off(worker(settings, tiny_networks))
    assert driver.get("/finetuning")["state"] == "idle"


def test_a_job_that_was_lost_is_queued_again_when_somebody_asks(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    driver = ready_to_learn(api)
    parts = api.app.state.parts
    parts.store.redis.delete("skillet:jobs", parts.store.load(driver.session["session_id"]).keys.finetuning)
    assert driver.get("/finetuning")["episodes_learned"] == 0
    work_off(worker(settings, tiny_networks))
    assert driver.get("/finetuning")["episodes_learned"] == 1


@pytest.mark.parametrize("lost", ["the note", "the job"])
def test_a_job_that_cannot_be_queued_when_an_episode_ends_is_queued_with_the_next_save(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    driver, jobs = Driver(api, conditioning_episodes=1), api.app.state.parts.adaptation._jobs
    with monkeypatch.context() as patch:
        patch.setattr(*((jobs, "_reserve") if lost == "the note" else (jobs.redis, "xadd")), unreachable)
        driver.run_episode(final_reward=1.0)
    assert jobs.redis.xlen("skillet:jobs") == 0
    driver.start()
    driver.act(1, 0, state(1, 0))
    assert jobs.redis.xlen("skillet:jobs") == 1
    work_off(worker(settings, tiny_networks))
    assert driver.get("/finetuning")["episodes_learned"] == 1


def test_an_end_that_is_told_again_queues_what_was_not_queued_the_first_time(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, parts = Driver(api, conditioning_episodes=1), api.app.state.parts
    driver.start()
    driver.act(0, 0, state(0, 0))
    last = {**transition(0, 0, state(0, 1), terminated=True), "reward": 1.0}
    with monkeypatch.context() as patch:  # as a process that dies once the end is saved
        patch.setattr(parts.loop, "all_grew", lambda saved: None)
        assert driver.ok(driver.post("step", **last))["episode_over"]
    assert parts.store.redis.xlen("skillet:jobs") == 0
    assert driver.ok(driver.post("step", **last))["replayed"]
    assert parts.store.redis.xlen("skillet:jobs") == 1


def test_a_policy_that_gives_no_numbers_fails_its_session_and_says_so(
    api: TestClient, settings: Settings, tiny_networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_finite(learner: SessionLearner) -> Turn:
        raise PolicyOutputInvalid("the task posterior is not finite")

    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    monkeypatch.setattr(SessionLearner, "advance", not_finite)
    work_off(learner)
    status = driver.get("/finetuning")
    assert (status["state"], status["error"]) == ("failed", "PolicyOutputInvalid: the task posterior is not finite")


def unreachable(*_: Any, **__: Any) -> Any:
    raise ConnectionError("the connection to Redis is gone")
