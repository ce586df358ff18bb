"""Expired sessions: 410 for their clients, off the lists, counted."""

import re
import time
from pathlib import Path

from fastapi.testclient import TestClient

from service.keys import SESSIONS, SessionKeys, owned
from service.reaper import Reaper
from service.sessions import owner_of
from tests.conftest import Driver
from tests.service.running import Remote, RunningService
from training.contract.bundle import Bundle


def expire(api: TestClient, driver: Driver) -> None:
    """As Redis does it when the time is over."""
    redis, keys = api.app.state.parts.store.redis, SessionKeys(driver.session["session_id"])
    redis.delete(*keys.lasting)


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.M)
    assert found is not None, name
    return float(found[1])


def test_expired_sessions_leave_the_lists_and_are_counted_and_open_and_closed_ones_are_not(api: TestClient) -> None:
    redis = api.app.state.parts.store.redis
    kept, closed, *expired = [Driver(api) for _ in range(4)]
    api.delete(closed.path)
    for driver in expired:
        expire(api, driver)
    owner = owner_of(kept.session["session_id"])
    assert (redis.zcard(SESSIONS), redis.zcard(owned(owner))) == (3, 3)
    assert [each["session_id"] for each in api.get("/v1/sessions").json()["sessions"]] == [kept.session["session_id"]]
    assert redis.zcard(SESSIONS) == 3  # looking changes nothing
    assert Reaper(redis, 1.0).reap() == 2
    assert (redis.zcard(SESSIONS), redis.zcard(owned(owner))) == (1, 1)
    assert api.get(expired[0].path).json()["code"] == "session_expired"
    assert api.get(kept.path).status_code == 200
    text = api.get("/metrics").text
    assert (metric(text, "skillet_sessions_expired_total"), metric(text, "skillet_sessions")) == (2, 1)
    assert abs(metric(text, "skillet_reaper_last_run_timestamp_seconds") - time.time()) < 60


def test_more_sessions_than_one_look_takes_are_all_looked_at(api: TestClient, monkeypatch) -> None:
    monkeypatch.setattr("service.reaper._BATCH", 2)
    drivers = [Driver(api) for _ in range(7)]
    for driver in drivers[::2]:
        expire(api, driver)
    redis = api.app.state.parts.store.redis
    assert Reaper(redis, 1.0).reap() == 4
    assert redis.zcard(SESSIONS) == 3


def test_of_several_services_one_at_a_time_reaps(api: TestClient) -> None:
    redis, driver = api.app.state.parts.store.redis, Driver(api)
    assert Reaper(redis, 60.0).reap() == 0
    expire(api, driver)
    assert Reaper(redis, 60.0).reap() == 0  # the other looked a moment ago
    assert redis.zcard(SESSIONS) == 1


def test_a_service_reaps_by_itself_and_a_slot_for_a_session_becomes_free(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner", SKILLET_REAP_INTERVAL_S="0.1", SKILLET_MAX_SESSIONS="1") as service:
        driver = Driver(Remote(service), ttl_s=1)
        assert service.post("/v1/sessions").status_code == 429
        deadline = time.monotonic() + 30
        while metric(service.get("/metrics").text, "skillet_sessions_expired_total") < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert service.get(driver.path).status_code == 410
        assert service.post("/v1/sessions").status_code == 201
