"""What a failed connection is called, and which requests are sent again."""

import socket
import ssl
import threading
import time

import pytest

from clients.sdk import HttpTransport, errors
from tests.clients.servers import SESSION, cut_in_body, free_port, hang_up, http_server, lists, raw_server, refuses, says


def test_a_refused_connection_says_that_nothing_listens_and_how_to_start_the_service(connect):
    url = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(errors.NothingListening, match=r"nothing listens at http://127.*python -m service") as caught:
        connect(url).bundles()
    assert time.monotonic() - started < 1, "a client that never had a reply must not retry a wrong address"
    assert not caught.value.request_sent


def test_a_host_without_an_address_is_named(connect):
    with pytest.raises(errors.NothingListening, match=r"'no-such-host\.invalid' has no address"):
        connect("http://no-such-host.invalid:8000").bundles()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:port"])
def test_an_address_that_cannot_be_used_is_refused_before_anything_is_sent(connect, url):
    with pytest.raises(errors.InvalidRequest, match="http://HOST:PORT"):
        connect(url)


def test_a_server_that_does_not_speak_http_is_told_apart(connect):
    with raw_server(b"+PONG\r\n") as port, pytest.raises(errors.NotHttp, match=r"does not speak HTTP.*PONG"):
        connect(f"http://127.0.0.1:{port}").bundles()


def test_https_to_a_plain_http_server_says_so(connect):
    with http_server(says(200, {})) as (url, _), pytest.raises(errors.TlsMismatch, match="use http://"):
        connect(url.replace("http:", "https:")).bundles()


def test_http_to_a_tls_server_points_to_https(connect):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, pytest.raises(errors.ConnectionFailed, match="https://"):
        connect(f"http://127.0.0.1:{listener.getsockname()[1]}").bundles()
    thread.join()


def test_a_read_whose_reply_was_cut_is_sent_again(connect):
    with http_server(lists("a"), cut_in_body, hang_up, lists("b")) as (url, server):
        client = connect(url)
        assert client.bundles()[0].name == "a"
        assert client.bundles()[0].name == "b"
    assert [path for _, path, _ in server.seen] == ["/v1/bundles"] * 4


def test_a_cut_reply_without_retries_is_an_error_that_says_the_request_was_sent(connect):
    with http_server(lists("a"), cut_in_body) as (url, _):
        client = connect(url, retry_for_s=0)
        client.bundles()
        with pytest.raises(errors.ConnectionLost, match="before its reply was complete") as caught:
            client.bundles()
    assert caught.value.request_sent


def test_rolling_back_without_a_version_is_not_sent_again_after_bytes_of_it_left(connect):
    with http_server(says(201, SESSION), hang_up, says(200, {"current": 0, "versions": []})) as (url, server):
        session = connect(url).open_session()
        with pytest.raises(errors.ConnectionLost):
            session.rollback()
    assert len(server.seen) == 2


def test_a_silent_server_is_given_up_after_the_timeout(connect):
    release = threading.Event()
    with http_server(lists(), lambda exchange: release.wait(5)) as (url, _):
        client = connect(url, timeout_s=0.2, retry_for_s=0)
        client.bundles()
        started = time.monotonic()
        with pytest.raises(errors.RequestTimeout, match=r"silent for 0\.2 s"):
            client.bundles()
        assert 0.15 < time.monotonic() - started < 2
        release.set()


def test_a_passing_fault_of_the_service_is_retried_until_the_deadline_and_then_told(connect):
    with http_server(refuses(503, "storage_unavailable")) as (url, server):
        with pytest.raises(errors.StorageUnavailable) as caught:
            connect(url, retry_for_s=0.5).bundles()
        assert caught.value.attempts == len(server.seen) > 2


def test_a_connection_that_the_server_closed_while_idle_is_replaced_without_an_error(connect):
    def answer_and_close(exchange):
        lists("a")(exchange)
        exchange.close_connection = True

    with http_server(answer_and_close, lists("b")) as (url, server):
        client = connect(url, retry_for_s=0)
        client.bundles()
        time.sleep(0.05)  # the server's close has to arrive; not a thing that the client could be asked about
        assert client.bundles()[0].name == "b"
    assert len(server.seen) == 2


def test_requests_share_one_connection(connect):
    peers = set()

    def answer(exchange):
        peers.add(exchange.client_address)
        lists()(exchange)

    with http_server(answer) as (url, _), connect(url) as client:
        for _ in range(5):
            client.bundles()
    assert len(peers) == 1


def test_the_token_travels_as_a_bearer_token(connect):
    with http_server(lists()) as (url, server):
        connect(url, token="t0ken").bundles()
    assert server.headers_seen[0]["authorization"] == "Bearer t0ken"


def test_ready_tells_a_ready_service_from_one_that_is_not_there(connect):
    with http_server(says(200, {}), says(503, {})) as (url, _):
        client = connect(url)
        assert client.ready()
        assert not client.ready()
    assert not connect(f"http://127.0.0.1:{free_port()}").ready()


def test_a_path_in_the_address_is_kept(connect):
    with http_server(lists()) as (url, server):
        connect(transport=HttpTransport(url + "/skillet/")).bundles()
    assert server.seen[0][1] == "/skillet/v1/bundles"


def test_after_a_429_it_is_sent_again_when_the_service_said_and_not_before(connect, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with http_server(refuses(429, "too_many_requests", retry_after_s=3), lists("a")) as (url, server):
        assert connect(url).bundles()[0].name == "a"
    assert len(server.seen) == 2
    (pause_s,) = pauses
    assert 3 <= pause_s < 4


def test_a_429_that_asks_for_more_patience_than_there_is_is_raised_at_once(connect):
    with http_server(refuses(429, "too_many_sessions", retry_after_s=30)) as (url, server):
        started = time.monotonic()
        with pytest.raises(errors.TooManySessions) as refused:
            connect(url, retry_for_s=20).open_session()
        assert time.monotonic() - started < 10
    assert (len(server.seen), refused.value.retry_after_s, refused.value.status) == (1, 30.0, 429)
