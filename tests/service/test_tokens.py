"""Tokens: made, kept, looked up, revoked; and what a service without any does."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.app import create_app
from service.doors import Doors, is_loopback
from service.errors import Forbidden, InvalidRequest, StartupError, Unauthorized, UnknownSession, UnknownToken
from service.exposure import check_exposure
from service.keys import FIRST_TOKEN
from service.policies import Networks
from service.roles import Role
from service.sessions import new_session_id
from service.settings import Settings
from service.storage import connect, pool_of
from service.token_watch import TokenWatch
from service.tokens import KnownTokens, TokenStore
from tests.conftest import Driver
from tests.service.running import Remote, RunningService, fails_to_start
from training.contract.bundle import Bundle


@pytest.fixture
def redis(redis_url: str):
    with connect(redis_url, 2.0) as client:
        yield client


@pytest.fixture
def tokens(redis: Redis) -> TokenStore:
    return TokenStore(redis)


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def test_redis_holds_no_token_and_no_two_are_alike(redis: Redis, tokens: TokenStore) -> None:
    texts = [tokens.create(Role.ROBOT, "arm")[1] for _ in range(3)]
    assert len(set(texts)) == 3
    stored = b"".join(name + value for name, value in redis.hgetall("skillet:tokens").items())
    for text in texts:
        secret = text.split("_", 2)[2]
        assert len(secret) == 43  # 256 bits
        assert secret.encode() not in stored


DAMAGES = (lambda t: t[:-1], lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), str.upper, lambda t: "", lambda t: t + "x")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_token_with_one_letter_changed_is_none(tokens: TokenStore, damage) -> None:
    known, (token, text) = KnownTokens(tokens), tokens.create(Role.ROBOT, "arm")
    assert known.find(text) == token
    with pytest.raises(Unauthorized, match="none of this service"):
        known.find(damage(text))


def test_revoked_and_expired_tokens_say_so_to_who_holds_them(tokens: TokenStore) -> None:
    known = KnownTokens(tokens)
    first, revoked = tokens.create(Role.ROBOT, "arm")
    _, expired = tokens.create(Role.ROBOT, "arm", lifetime_s=1e-6)
    tokens.revoke(first.token_id)
    tokens.revoke(first.token_id)  # again changes nothing
    for text, reason in ((revoked, "was revoked"), (expired, "has expired")):
        with pytest.raises(Unauthorized, match=reason):
            known.find(text)
    with pytest.raises(UnknownToken):
        tokens.revoke("00000000")


def test_a_name_stands_for_one_role_as_long_as_its_tokens_are_valid(tokens: TokenStore) -> None:
    token, _ = tokens.create(Role.ROBOT, "arm")
    tokens.create(Role.ROBOT, "arm")
    with pytest.raises(InvalidRequest, match="role robot"):
        tokens.create(Role.ADMIN, "arm")
    for name in ("", "a b", "x" * 65, "-a", "a\n"):
        with pytest.raises(InvalidRequest, match="cannot be used"):
            tokens.create(Role.ROBOT, name)
    assert token.owner != tokens.create(Role.ADMIN, "boss")[0].owner


def test_looking_a_token_up_asks_redis_nothing(tokens: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    known, (token, text) = KnownTokens(tokens), tokens.create(Role.ROBOT, "arm")
    known.refresh()

    def asked(self: TokenStore) -> bytes:
        raise AssertionError("Redis was asked")

    monkeypatch.setattr(TokenStore, "version", asked)
    assert known.find(text) == token
    known.check(token.token_id)


def test_what_is_known_is_read_again_before_it_is_used_stale(tokens: TokenStore) -> None:
    known, (token, text) = KnownTokens(tokens, stale_after_s=0.0), tokens.create(Role.ROBOT, "arm")
    assert known.find(text) == token
    tokens.revoke(token.token_id)
    with pytest.raises(Unauthorized):
        known.find(text)


def test_the_watch_notices_a_revocation_by_itself(settings: Settings, tokens: TokenStore) -> None:
    known, (token, text) = KnownTokens(tokens, stale_after_s=1e9), tokens.create(Role.ROBOT, "arm")
    known.refresh()
    assert settings.redis_url is not None
    redis = connect(settings.redis_url, 2.0)
    watch, looked = TokenWatch(known, redis, pool_of(redis), interval_s=0.01), threading.Event()
    watch.start()
    tokens.revoke(token.token_id)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not looked.wait(0.01):
        try:
            known.find(text)
        except Unauthorized:
            looked.set()
    watch.close()
    assert looked.is_set()


def test_a_connection_that_outlives_its_token_or_names_another_session_is_refused_by_check(settings: Settings, tokens: TokenStore) -> None:
    known, (token, text) = KnownTokens(tokens, stale_after_s=0.0), tokens.create(Role.ROBOT, "arm")
    doors = Doors(settings, known)
    scope = {"type": "http", "method": "GET", "path": "/v1/bundles", "headers": [(b"authorization", f"Api-Key {text}".encode())]}
    caller = doors.enter(scope)
    assert (caller.name, caller.role, caller.token_id) == ("arm", Role.ROBOT, token.token_id)
    doors.check(caller, "POST", f"/v1/sessions/{new_session_id(token.owner)}/step")
    with pytest.raises(UnknownSession):
        doors.check(caller, "POST", f"/v1/sessions/{new_session_id('f' * 10)}/step")
    with pytest.raises(Forbidden):
        doors.check(caller, "POST", f"/v1/sessions/{new_session_id(token.owner)}/policy/approve")
    tokens.revoke(token.token_id)
    with pytest.raises(Unauthorized, match="revoked"):
        doors.check(caller, "POST", f"/v1/sessions/{new_session_id(token.owner)}/step")


@pytest.mark.parametrize("header", ["", "Bearer", "Basic abc", "Bearer  ", "bearer skillet_00000000_" + "a" * 43, "Bearer \xff"])
def test_an_unreadable_or_foreign_credential_is_refused_and_not_repeated(api: TestClient, header: str) -> None:
    api.app.state.parts.tokens.create(Role.ROBOT, "arm")
    api.app.state.parts.doors._tokens.refresh()
    response = api.get("/v1/sessions", headers={"authorization": header.encode("latin-1")})
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer realm=")
    assert "aaaa" not in response.text


def test_without_any_token_this_machine_is_let_in_and_with_the_first_it_is_asked(api: TestClient) -> None:
    driver = Driver(api)
    parts = api.app.state.parts
    token, text = parts.tokens.create(Role.OPERATOR, "shift-lead")
    parts.doors._tokens.refresh()
    assert api.get(driver.path).status_code == 401
    assert api.get(driver.path, headers=bearer(text)).status_code == 200
    parts.tokens.revoke(token.token_id)
    parts.doors._tokens.refresh()
    assert api.get(driver.path).status_code == 401  # revoking the last token opens nothing


def test_where_nobody_is_asked_for_a_token_nobody_makes_one_over_http(api: TestClient) -> None:
    response = api.post("/v1/tokens", json={"role": "admin", "name": "mallory"})
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert api.get("/v1/tokens").status_code == 403
    assert api.app.state.parts.tokens.all() == []


def test_without_any_doors_a_web_page_of_another_site_is_refused_and_the_services_own_is_not(
    settings: Settings, tiny_networks: Networks
) -> None:
    open_to_all = settings.model_copy(update={"insecure_no_auth": True})
    with TestClient(create_app(open_to_all, {"tiny": tiny_networks})) as api:
        refused = api.post("/v1/sessions", content="{}", headers={"origin": "http://evil.example"})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        for own in ("http://robot.local:8000", "http://localhost:3000"):
            assert api.post("/v1/sessions", content="{}", headers={"origin": own, "host": "robot.local:8000"}).status_code == 201


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example:8000", "http://[", ""])
def test_where_nobody_is_asked_for_a_token_a_web_page_of_another_site_is_refused(api: TestClient, origin: str) -> None:
    refused = api.post("/v1/sessions", content="{}", headers={"origin": origin, "content-type": "text/plain"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for own in ("http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"):
        assert api.post("/v1/sessions", headers={"origin": own}).status_code == 201


def test_an_admin_makes_lists_and_revokes_tokens_over_http(api: TestClient) -> None:
    parts = api.app.state.parts
    admin = bearer(parts.tokens.create(Role.ADMIN, "boss")[1])
    parts.doors._tokens.refresh()
    made = Driver.ok(api.post("/v1/tokens", json={"role": "robot", "name": "arm", "lifetime_s": 60}, headers=admin), 201)
    parts.doors._tokens.refresh()
    assert api.get("/v1/sessions", headers=bearer(made["token"])).status_code == 200
    listed = Driver.ok(api.get("/v1/tokens", headers=admin))["tokens"]
    assert [(each["name"], "token" in each) for each in listed] == [("boss", False), ("arm", False)]
    assert Driver.ok(api.delete(f"/v1/tokens/{made['token_id']}", headers=admin))["revoked_at"]
    parts.doors._tokens.refresh()
    assert api.get("/v1/sessions", headers=bearer(made["token"])).status_code == 401
    assert api.delete("/v1/tokens/unknown", headers=admin).json()["code"] == "unknown_token"
    assert api.post("/v1/tokens", json={"role": "king", "name": "arm"}, headers=admin).status_code == 422


@pytest.mark.parametrize("days", ["4000000", "1e300", "nan", "inf", "0", "-1", "36500.1"])
def test_a_lifetime_that_no_token_can_have_is_refused_in_one_line(
    settings: Settings, tokens: TokenStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    from service.tokens_cli import main

    monkeypatch.setenv("SKILLET_REDIS_URL", str(settings.redis_url))
    assert main(["create", "--role", "robot", "--name", "arm", f"--days={days}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"skillet: a token cannot be valid for {float(days):g} days; Choose more than 0 and at most 36500 days, or no end at all."
    )
    assert tokens.all() == []
    assert main(["create", "--role", "robot", "--name", "arm", "--days", "36500"]) == 0
    assert main(["ls"]) == 0


HERE = ("127.0.0.1", "127.8.0.1", "::1", "localhost")
ELSEWHERE = ("0.0.0.0", "::", "192.0.2.1", "", "localhost.example")


@pytest.mark.parametrize(("host", "loopback"), [*((host, True) for host in HERE), *((host, False) for host in ELSEWHERE)])
def test_only_loopback_is_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_beyond_this_machine_a_service_needs_a_token_or_the_flag(redis: Redis, tokens: TokenStore, settings: Settings) -> None:
    outside = settings.model_copy(update={"host": "192.0.2.1"})
    with pytest.raises(StartupError, match="tokens create"):
        check_exposure(outside, redis)
    check_exposure(settings, redis)
    check_exposure(outside.model_copy(update={"insecure_no_auth": True}), redis)
    tokens.create(Role.ADMIN, "boss")
    check_exposure(outside, redis)


def test_beyond_this_machine_tokens_are_asked_for_whatever_becomes_of_them(settings: Settings, tiny_networks) -> None:
    outside = settings.model_copy(update={"host": "192.0.2.1"})
    with TestClient(create_app(outside, {"tiny": tiny_networks})) as api:
        assert api.get("/v1/sessions").status_code == 401
        assert api.get("/livez").status_code == 200
    with TestClient(create_app(outside.model_copy(update={"insecure_no_auth": True}), {"tiny": tiny_networks})) as api:
        assert api.get("/v1/sessions").status_code == 200


def test_the_service_refuses_to_listen_beyond_this_machine_without_a_token(tiny_bundle: Bundle, tmp_path: Path) -> None:
    line = fails_to_start(tiny_bundle.path, tmp_path, "--no-learner", "--host", "0.0.0.0")
    assert "0.0.0.0" in line
    assert "tokens create" in line
    assert "--insecure-no-auth" in line


def test_a_first_token_is_made_where_there_is_none_and_never_a_second(
    redis: Redis, tokens: TokenStore, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = settings.model_copy(update={"host": "192.0.2.1", "first_token": True})
    check_exposure(settings.model_copy(update={"first_token": True}), redis)
    assert tokens.all() == []  # on this machine nobody is asked for one
    for _ in range(2):
        check_exposure(outside, redis)
    (token,) = tokens.all()
    assert (token.role, token.name) == (Role.ADMIN, "first")
    tokens.revoke(token.token_id)
    redis.delete(FIRST_TOKEN)
    check_exposure(outside, redis)
    assert len(tokens.all()) == 1  # revoking it opens no door
    assert capsys.readouterr().err.count("skillet_") == 1


def test_services_that_start_together_make_one_first_token(redis: Redis, tokens: TokenStore, settings: Settings) -> None:
    outside = settings.model_copy(update={"host": "192.0.2.1", "first_token": True})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check_exposure(outside, redis), range(8)))
    assert len(tokens.all()) == 1


def test_the_first_token_is_printed_once_and_opens_the_service(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = ("--no-learner", "--host", "0.0.0.0", "--first-token")
    with RunningService(tiny_bundle.path, tmp_path, *options) as service:
        (text,) = [line for line in service.log().splitlines() if line.startswith("skillet_")]
        assert service.get("/v1/sessions").status_code == 401
        reply = service.pool.request("GET", "/v1/tokens", headers=bearer(text))
        assert [token["name"] for token in reply.json()["tokens"]] == ["first"]
        assert text not in reply.data.decode()
    with RunningService(tiny_bundle.path, tmp_path, *options) as service:
        assert "skillet_" not in service.log()
        assert service.pool.request("GET", "/v1/sessions", headers=bearer(text)).status == 200


def test_tokens_of_the_command_line_work_in_every_api_process_until_they_are_revoked(tiny_bundle: Bundle, tmp_path: Path, capsys) -> None:
    from service.tokens_cli import main

    data = ["--data-dir", str(tmp_path)]
    assert main([*data, "create", "--role", "robot", "--name", "arm"]) == 0  # before the first start
    text = capsys.readouterr().out.strip()
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner", "--workers", "2") as service:
        driver_api = Remote(service)
        assert driver_api.get("/v1/sessions").status_code == 401
        assert service.get("/readyz").status_code == 200

        def answers() -> set[int]:
            """From new connections, which both processes take."""
            return {service.pool.request("GET", "/v1/sessions", headers={**bearer(text), "connection": "close"}).status for _ in range(20)}

        assert answers() == {200}
        assert main([*data, "ls"]) == 0
        listed = capsys.readouterr().out
        assert "arm" in listed
        assert text.split("_", 2)[2] not in listed
        assert main([*data, "revoke", listed.split()[0]]) == 0  # beside the running service
        deadline = time.monotonic() + 20
        while answers() != {401}:
            assert time.monotonic() < deadline
        assert text.split("_", 2)[2] not in service.log()
        assert main([*data, "revoke", "nobody"]) == 2
        assert "no token has this id" in capsys.readouterr().err
