"""What a stranger can do to a real API process before a token is looked at: nothing, whatever it floods it with; and TLS."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from clients.sdk import SkilletClient, errors
from service.http_protocol import MAX_HEAD_BYTES, LimitedHttpProtocol
from service.roles import Role
from service.storage import connect
from service.tokens import TokenStore
from tests.service.running import RunningService, fails_to_start, running
from training.contract.bundle import Bundle

TLS = Path(__file__).parent / "tls"  # self-signed, for 127.0.0.1 and localhost: openssl req -x509 -newkey ec ... -addext subjectAltName=...
MIB = 2**20
FLOOD = 64 * MIB


@pytest.fixture(scope="module")
def service(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One that asks for tokens."""
    data = tmp_path_factory.mktemp("doors")
    with RunningService(tiny_bundle.path, data, "--no-learner", SKILLET_STANDBY_WORKERS="0") as started:
        with connect(f"unix://{data}/redis.sock", 2.0) as redis:
            TokenStore(redis).create(Role.ROBOT, "arm")
        deadline = time.monotonic() + 20
        while started.get("/v1/sessions").status_code != 401:
            assert time.monotonic() < deadline
        yield started


def memory_mib(service: RunningService) -> float:
    (pid,) = running(service.process.pid, "service.api_worker")
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def flood(service: RunningService, head: bytes, filler: bytes) -> bytes:
    """Send ``head``, then ``filler`` again and again until the service hangs up or 64 MiB are sent. Returns what it answered."""
    answer = b""
    with socket.create_connection(("127.0.0.1", service.pool.port), timeout=30) as connection:
        sent = 0
        try:
            connection.sendall(head)
            while sent < FLOOD:
                connection.sendall(filler)
                sent += len(filler)
        except OSError:  # it hung up
            pass
        try:
            while data := connection.recv(65536):
                answer += data
        except OSError:
            pass
    assert sent < FLOOD, "it took everything"
    return answer


HEAD = b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
LONG = b"x" * 65536
FLOODS = {
    "one endless header": (HEAD + b"x-long: ", LONG),
    "one endless header name": (HEAD, LONG),
    "headers without end": (HEAD, b"x-more: 1\r\n" * 6000),
    "an endless path": (b"GET /", LONG),
    "an endless chunk extension": (CHUNKED + b"1;", LONG),
    "an endless trailer": (CHUNKED + b"0\r\nx-long: ", LONG),
    "trailers without end": (CHUNKED + b"0\r\n", b"x-more: 1\r\n" * 6000),
}


@pytest.mark.parametrize("how", FLOODS)
def test_no_flood_beside_the_body_is_read_to_its_end_or_kept(service: RunningService, how: str) -> None:
    before = memory_mib(service)
    flood(service, *FLOODS[how])
    assert memory_mib(service) - before < 16
    assert service.get("/livez").status_code == 200


def test_a_head_that_is_too_large_is_told_so(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.pool.port), timeout=30) as connection:
        connection.sendall(HEAD + b"x-long: " + b"x" * (MAX_HEAD_BYTES + 1))
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in answer
    assert b'"code":"headers_too_large"' in answer


@pytest.mark.parametrize("body", [0, 300_000])
def test_a_head_that_comes_with_its_end_may_have_as_much_as_one_that_comes_bit_by_bit(body: int) -> None:
    def status(size: int) -> bytes:
        head = HEAD + b"content-length: %d\r\nx-long: " % body
        head += b"x" * (size - len(head) - 4) + b"\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(head + bytes(body))
            first = connection.recv(12)
            if first.endswith(b"200"):
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")  # the connection is fit for another
                connection.shutdown(socket.SHUT_WR)
                rest = b"".join(iter(lambda: connection.recv(65536), b""))
                assert rest.count(b"HTTP/1.1 200") == 1
        return first[-3:]

    with bare_server() as port:
        assert [status(size) for size in (1000, MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1, 70_000, 300_000)] == [b"200", b"200", *3 * [b"431"]]


@pytest.mark.parametrize(
    "data", [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", HEAD + b"content-length: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"]
)
def test_what_is_no_http_gets_a_problem_document_too(service: RunningService, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.pool.port), timeout=30) as connection:
        connection.sendall(data)
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert connection.recv(1) == b""
    problem = json.loads(body)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert (problem["code"], problem["status"]) == ("malformed_request", 400)
    assert b"content-type: application/problem+json" in head
    assert f"x-request-id: {problem['request_id']}".encode() in head


def test_a_head_is_answered_without_a_body(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.pool.port), timeout=30) as connection:
        connection.sendall(b"HEAD /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_a_head_within_the_limit_and_a_body_of_many_parts_are_taken(service: RunningService) -> None:
    assert service.pool.request("GET", "/livez", headers={"x-long": "x" * 60_000}).status == 200
    body = (b'{"seed": 1}' + b" " * 1000 for _ in range(1))
    assert service.pool.request("POST", "/v1/sessions", body=body, headers={"content-type": "application/json"}, chunked=True).status == 401


def test_a_handshake_without_a_token_gets_a_problem_document_and_is_no_fault_of_the_service(service: RunningService) -> None:
    upgrade = "GET /v1/stream HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    with socket.create_connection(("127.0.0.1", service.pool.port), timeout=30) as connection:
        connection.sendall(f"{upgrade}sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nauthorization: Bearer x\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unauthorized"
    assert service.get("/livez").status_code == 200  # by now it would be in the log
    assert "handshake" not in service.log()


def test_a_body_without_a_token_is_not_kept(service: RunningService) -> None:
    before = memory_mib(service)
    with socket.create_connection(("127.0.0.1", service.pool.port), timeout=30) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % (2**40))
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
        try:
            for _ in range(FLOOD // len(LONG)):
                connection.sendall(LONG)
        except OSError:
            pass
    assert memory_mib(service) - before < 16


def test_a_body_that_is_too_large_is_refused_before_it_is_read(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner", SKILLET_STANDBY_WORKERS="0") as open_service:
        before = memory_mib(open_service)
        for framing, chunk in (
            (b"content-length: %d\r\n\r\n" % 2**40, LONG),
            (b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + LONG + b"\r\n"),
        ):
            with socket.create_connection(("127.0.0.1", open_service.pool.port), timeout=30) as connection:
                connection.sendall(HEAD + framing)
                try:
                    for _ in range(FLOOD // len(LONG)):
                        connection.sendall(chunk)
                except OSError:
                    pass
                else:
                    assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
        assert memory_mib(open_service) - before < 32
        assert open_service.post("/v1/sessions").status_code == 201


def half_sent(service: RunningService, head: bytes = HEAD) -> socket.socket:
    """A connection whose request's body has begun."""
    connection = socket.create_connection(("127.0.0.1", service.pool.port), timeout=30)
    connection.sendall(head + b"content-length: 11\r\n\r\n{")
    return connection


def test_bodies_that_do_not_end_keep_nobody_else_out_and_one_that_was_cut_off_asks_for_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner", SKILLET_STANDBY_WORKERS="0", SKILLET_MAX_IN_FLIGHT="8") as service:
        kept = service.post("/v1/sessions").json()["session_id"]
        many = [half_sent(service) for _ in range(50)]
        for _ in range(10):
            assert service.get("/v1/sessions").status_code == 200
        for connection in many:
            connection.close()
        with socket.create_connection(("127.0.0.1", service.pool.port)) as connection:  # a head, and then nothing
            connection.sendall(HEAD + b"content-length: 11\r\n\r\n")
        deadline = time.monotonic() + 20
        while (listed := service.get("/v1/sessions")).status_code == 503:  # all of them end at the same moment
            assert time.monotonic() < deadline
        assert [each["session_id"] for each in listed.json()["sessions"]] == [kept]
        assert "internal_error" not in service.get("/metrics").text
        assert "Traceback" not in service.log()


def test_a_token_has_so_many_bodies_under_way(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner", SKILLET_STANDBY_WORKERS="0", SKILLET_MAX_IN_FLIGHT="8") as service:
        with connect(f"unix://{tmp_path}/redis.sock", 2.0) as redis:
            arm, other = (TokenStore(redis).create(Role.ROBOT, name)[1] for name in ("arm", "other"))
        deadline = time.monotonic() + 20
        while service.get("/v1/sessions").status_code != 401:
            assert time.monotonic() < deadline

        def opened(token: str) -> int:
            return service.pool.request("POST", "/v1/sessions", json={}, headers={"authorization": f"Bearer {token}"}).status

        many = [half_sent(service, HEAD + f"authorization: Bearer {arm}\r\n".encode()) for _ in range(8)]
        while opened(arm) != 429:
            assert time.monotonic() < deadline
        assert opened(other) == 201
        for connection in many:
            connection.close()
        while opened(arm) != 201:
            assert time.monotonic() < deadline


def test_a_body_that_does_not_come_is_not_waited_for(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.wire.BODY_TIMEOUT_S", 0.05)
    sent: list[dict[str, Any]] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/sessions", "raw_path": b"/v1/sessions", "query_string": b"", "headers": []}
    asyncio.run(api.app(scope | {"http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("x", 1)}, never, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert b'"code":"body_timeout"' in sent[1]["body"]


@contextmanager
def bare_server() -> Iterator[int]:
    """The protocol, in front of an application that says hello. Yields its port."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=LimitedHttpProtocol, ws="none", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def test_who_connects_and_sends_no_head_is_hung_up_on_and_who_sent_one_may_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http_protocol.HEAD_TIMEOUT_S", 0.3)
    with bare_server() as port:
        connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3)]
        silent, slow, good = connections
        slow.sendall(b"GET / HTTP/1.1\r\nx: ")
        good.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert good.recv(4096).startswith(b"HTTP/1.1 200")
        for each in (silent, slow):
            assert each.recv(4096).startswith(b"HTTP/1.1 408 ")
            assert each.recv(4096) == b""
        good.sendall(b"GET / HTTP/1.1\r\n\r\n")  # later than the others' time
        assert good.recv(4096).startswith(b"HTTP/1.1 200")
        for connection in connections:
            connection.close()


def test_the_sdk_drives_a_service_over_tls_with_its_certificate_and_not_without(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = ("--no-learner", "--tls-cert", str(TLS / "cert.pem"), "--tls-key", str(TLS / "key.pem"))
    with RunningService(tiny_bundle.path, tmp_path, *options, SKILLET_STANDBY_WORKERS="0") as service:
        url = f"https://127.0.0.1:{service.pool.port}"
        assert url in service.ready_line
        for stream in (False, True):
            with SkilletClient(url, ca_file=str(TLS / "cert.pem"), stream=stream) as client:
                session = client.open_session()
                session.start_episode()
                assert session.act([0.0, 0.1, -0.2, 0.3]).step == 0
        with SkilletClient(url) as client, pytest.raises(errors.TlsMismatch, match="not trusted"):
            client.bundles()
        with SkilletClient(url.replace("https", "http")) as client, pytest.raises(errors.ConnectionFailed):
            client.bundles()


def test_certificates_that_cannot_be_used_are_told_before_anything_starts(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cert, key = str(TLS / "cert.pem"), str(TLS / "key.pem")
    assert "needs both" in fails_to_start(tiny_bundle.path, tmp_path, "--tls-cert", cert)
    assert "cannot use the certificate" in fails_to_start(tiny_bundle.path, tmp_path, "--tls-cert", key, "--tls-key", cert)
    assert "cannot use the certificate" in fails_to_start(
        tiny_bundle.path, tmp_path, "--tls-cert", str(tmp_path / "none"), "--tls-key", key
    )
