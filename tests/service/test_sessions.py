"""Opening, reading, listing, closing and expiry of sessions."""

import time

import pytest
from fastapi.testclient import TestClient

from service.keys import KNOWN_EXTRA_MS, SessionKeys
from tests.conftest import Driver


def test_a_session_tells_its_options_and_what_to_send(api: TestClient) -> None:
    session = Driver(api, seed=3, conditioning_episodes=4, ttl_s=60).session
    assert (session["seed"], session["conditioning_episodes"], session["phase"], session["closed"]) == (3, 4, "exploring", False)
    assert session["specs"]["observation"]["names"] == ["x", "y", "vx", "vy"]
    assert session["specs"]["skill_horizon"] == 5
    assert (session["episode"], session["episode_open"], session["policy_version"]) == (None, False, 0)


def test_an_empty_body_opens_a_session_with_the_defaults(api: TestClient) -> None:
    session = Driver.ok(api.post("/v1/sessions"), 201)
    assert (session["bundle"]["name"], session["conditioning_episodes"], session["finetuning"]) == ("tiny", 20, True)


def test_sessions_are_listed_in_pages_newest_first(api: TestClient) -> None:
    ids = []
    for _ in range(5):
        ids.append(Driver(api).session["session_id"])
        time.sleep(0.002)  # ids sort by the millisecond of their creation
    first = Driver.ok(api.get("/v1/sessions?limit=2"))
    second = Driver.ok(api.get(f"/v1/sessions?limit=2&cursor={first['next_cursor']}"))
    third = Driver.ok(api.get(f"/v1/sessions?limit=2&cursor={second['next_cursor']}"))
    found = [session["session_id"] for page in (first, second, third) for session in page["sessions"]]
    assert found == ids[::-1]
    assert third["next_cursor"] is None
    assert Driver.ok(api.get("/v1/sessions?limit=2&cursor=")) == first


@pytest.mark.parametrize(("reward", "phase"), [(0.0, "exploring"), (-0.01, "adapted"), (1.0, "adapted")])
def test_a_cost_ends_exploring_as_a_reward_does(api: TestClient, reward: float, phase: str) -> None:
    driver = Driver(api, conditioning_episodes=1)
    driver.run_episode(final_reward=reward)
    assert driver.start()["phase"] == phase


def test_without_conditioning_episodes_nothing_is_explored(api: TestClient) -> None:
    driver = Driver(api, conditioning_episodes=0)
    assert [reply["phase"] for reply in driver.run_episode()] == ["adapted"] * 8
    assert driver.get("/finetuning")["state"] == "queued"
    assert driver.start()["phase"] == "adapted"
    driver.ok(api.patch(driver.path, json={"phase": "exploring"}))
    assert driver.start()["phase"] == "exploring"


def test_a_closed_session_is_gone_with_everything_of_it(api: TestClient) -> None:
    driver = Driver(api)
    driver.run_episode(final_reward=1.0)
    driver.get("/task")
    assert Driver.ok(api.delete(driver.path))["closed"] is True
    assert api.get(driver.path).json()["code"] == "session_closed"
    assert api.get(driver.path).status_code == 410
    redis = api.app.state.parts.store.redis
    left = [key.decode().rpartition(":")[2] for key in redis.scan_iter(f"*{driver.session['session_id']}*")]
    assert left == ["known"]


def test_an_expired_session_says_so_and_leaves_no_data(api: TestClient) -> None:
    driver = Driver(api, ttl_s=1)
    driver.run_episode(final_reward=1.0)
    redis, session_id = api.app.state.parts.store.redis, driver.session["session_id"]
    assert all(redis.pttl(key) > 0 for key in redis.scan_iter(f"*{session_id}*"))
    deadline = time.monotonic() + 5
    while redis.exists(f"skillet:{{{session_id}}}:session") and time.monotonic() < deadline:
        time.sleep(0.05)
    response = api.get(driver.path)
    assert (response.status_code, response.json()["code"]) == (410, "session_expired")
    assert [key for key in redis.scan_iter(f"*{session_id}*") if not key.endswith(b"known")] == []
    assert Driver.ok(api.get("/v1/sessions"))["sessions"] == []


def test_requests_keep_a_session_alive(api: TestClient) -> None:
    driver = Driver(api, ttl_s=2)
    redis, key = api.app.state.parts.store.redis, f"skillet:{{{driver.session['session_id']}}}:session"
    time.sleep(0.5)
    driver.start()
    assert redis.pttl(key) > 1900


@pytest.mark.parametrize("off_s", [-120.0, 7200.0])
def test_a_session_lives_for_its_time_whatever_the_clock_of_the_machine_that_serves_it(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    redis, right = api.app.state.parts.store.redis, time.time
    served_before = Driver(api, ttl_s=60)
    monkeypatch.setattr(time, "time", lambda: right() + off_s)
    for driver in (Driver(api, ttl_s=60), served_before):
        keys = SessionKeys(driver.session["session_id"])
        assert 50_000 < redis.pttl(keys.session) <= 60_000
        redis.pexpire(keys.session, 20_000)
        monkeypatch.setattr(time, "time", lambda: right() + off_s + 20)  # so that the time to live is written anew
        driver.start()
        assert 50_000 < redis.pttl(keys.session) <= 60_000
        assert 50_000 < redis.pttl(keys.known) - KNOWN_EXTRA_MS <= 60_000


def test_bundles_are_described_and_their_files_served(api: TestClient, tiny_bundle) -> None:
    (summary,) = Driver.ok(api.get("/v1/bundles"))["bundles"]
    assert (summary["name"], summary["digest"]) == ("tiny", tiny_bundle.manifest.digest)
    manifest = Driver.ok(api.get("/v1/bundles/tiny"))
    assert "golden" not in manifest
    assert manifest["spec"]["skill_dim"] == 3
    response = api.get("/v1/bundles/tiny/skill_decoder.onnx")
    assert response.content == tiny_bundle.read("skill_decoder.onnx")
    again = api.get("/v1/bundles/tiny/skill_decoder.onnx", headers={"if-none-match": response.headers["etag"]})
    assert again.status_code == 304
    for missing in ("/v1/bundles/other", "/v1/bundles/tiny/other.onnx", "/v1/bundles/tiny/..%2Fmanifest.json"):
        assert api.get(missing).status_code == 404
        assert api.get(missing).headers["content-type"] == "application/problem+json"


def test_operation_calls_answer_and_change_nothing(api: TestClient) -> None:
    driver = Driver(api)
    driver.run_episode()
    driver.get("/task")  # waits for the inference that the episode's end began
    before = driver.get()
    assert Driver.ok(api.get("/livez")) == {"status": "ok"}
    assert Driver.ok(api.get("/readyz"))["status"] == "ok"
    text = api.get("/metrics").text
    assert 'skillet_call_seconds_bucket{call="step",le="0.0005"}' in text
    assert "skillet_transitions_total 7.0" in text
    assert driver.session["session_id"] not in text
    assert driver.get() == before


def test_the_documentation_names_every_call_with_its_types(api: TestClient) -> None:
    document = Driver.ok(api.get("/openapi.json"))
    step = document["paths"]["/v1/sessions/{session_id}/step"]["post"]
    assert step["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Transition"}
    assert step["requestBody"]["content"]["application/json"]["example"]["reward"] == 0.0
    assert step["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Action"}
    references = {item.split('"')[0] for item in str(document).replace("'", '"').split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
    assert api.get("/docs").status_code == 200
