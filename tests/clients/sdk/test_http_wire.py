"""Replies are read as `http.client` reads them, whichever pieces they come in."""

import http.client
import socket
import threading

import pytest

from clients.sdk.http_wire import read_reply, write_request

BODY = b'{"a": 1}'
USUAL = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nX-Y:  z \r\n\r\n" + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n" + BODY[:3] + b"\r\n5\r\n" + BODY[3:] + b"\r\n0\r\n\r\n"
REPLIES = {
    "usual": (USUAL, 200, BODY, True),
    "empty": (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 404, b"", True),
    "chunked": (CHUNKED, 200, BODY, True),
    "after 100": (b"HTTP/1.1 100 Continue\r\n\r\n" + USUAL, 200, BODY, True),
    "without a body": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n", 304, b"", True),
    "closing": (USUAL.replace(b"X-Y:  z ", b"Connection: close"), 200, BODY, False),
    "to the end": (b"HTTP/1.1 200 OK\r\n\r\n" + BODY, 200, BODY, False),
    "old": (b"HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\n" + BODY, 200, BODY, False),
    "lengths that agree": (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nContent-Length: 8\r\n\r\n" + BODY, 200, BODY, True),
}


def read(data: bytes, piece: int, method: str = "POST"):
    """The reply that ``data``, sent in pieces and then ended, is taken for."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)

    def send():
        with theirs:
            for at in range(0, len(data), piece):
                theirs.sendall(data[at : at + piece])

    with ours:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            return read_reply(ours, method)
        finally:
            thread.join()


@pytest.mark.parametrize("piece", [1, 7, 10_000])
@pytest.mark.parametrize("name", REPLIES)
def test_every_way_to_end_a_body_is_understood(name, piece):
    data, status, body, reusable = REPLIES[name]
    reply, again = read(data, piece)
    assert (reply.status, reply.body, again) == (status, body, reusable)
    if "x-y" in reply.headers:
        assert reply.headers["x-y"].strip() == "z"


def test_a_reply_to_head_has_no_body():
    reply, again = read(USUAL[: -len(BODY)], 100, "HEAD")
    assert (reply.status, reply.body, again) == (200, b"", True)


def test_bytes_behind_a_reply_end_the_connections_use():
    reply, again = read(USUAL + b"HTTP", 10_000)
    assert (reply.body, again) == (BODY, False)


@pytest.mark.parametrize("piece", [1, 10_000])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", http.client.RemoteDisconnected),
        (b"HTTP/1.1 200 OK\r\nConte", http.client.IncompleteRead),
        (USUAL[:-1], http.client.IncompleteRead),
        (b"+PONG\r\n", http.client.BadStatusLine),
        (b"\x15\x03\x01\x00\x02\x02F", http.client.BadStatusLine),
    ],
)
def test_what_is_no_whole_reply_raises_what_the_standard_library_raises(data, kind, piece):
    with pytest.raises(kind):
        read(data, piece)


def test_a_request_leaves_in_one_piece_and_nothing_breaks_out_of_its_line():
    assert write_request("POST", "/a", "h:1", b"xy", {"k": "v"}) == b"POST /a HTTP/1.1\r\nhost: h:1\r\nk: v\r\ncontent-length: 2\r\n\r\nxy"
    assert write_request("GET", "/a", "h", None, {}) == b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
    for path, value in (("/a b", "v"), ("/a\r\nx: y", "v"), ("/ä", "v"), ("/a", "v\r\nx: y"), ("/a", "v\x00")):
        with pytest.raises(ValueError, match="cannot be sent"):
            write_request("POST", path, "h", b"", {"k": value})
