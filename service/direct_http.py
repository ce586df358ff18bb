"""``act`` and ``step`` over HTTP, answered in the server's own protocol: past ASGI's messages and tasks (`service.lane`).

A request that comes in one piece and has nothing unusual in its head is read here; every other is uvicorn's, and so is one that the lane
does not answer. What is usual is narrow on purpose, so that no request can mean one thing here and another there.
"""

import re
import time
from typing import Any, Final, cast

from fastapi import FastAPI
from uvicorn import Config
from uvicorn.server import ServerState

from service import schemas
from service.deadlines import Deadline
from service.decoding import decode
from service.framing import DIGEST, REQUEST_ID, covered, digest, given_request_id, new_request_id
from service.http_protocol import MAX_HEAD_BYTES, LimitedHttpProtocol
from service.lane import Lane
from service.wire import encode

_REQUEST: Final = re.compile(
    rb"(POST /v1/sessions/([0-9a-f]{32})/(act|step)) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9-]+: [!-~](?:[ -~]*[!-~])?\r\n){1,40})\r\n"
)
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"})
_KINDS: Final[dict[bytes, type[schemas.Act | schemas.Transition]]] = {b"act": schemas.Act, b"step": schemas.Transition}
Headers = dict[bytes, bytes]


def read_head(data: bytes) -> tuple[bytes, bytes, bytes, Headers, bytes] | None:
    """What is asked, session id, call, headers by lower-case name, and body, of a whole request that is a usual one; None for others."""
    if (match := _REQUEST.match(data)) is None or match.end() > MAX_HEAD_BYTES:
        return None
    asked, session_id, call, head = match.groups()
    lines = head.split(b"\r\n")[:-1]
    headers = {name.lower(): value for name, _, value in [line.partition(b": ") for line in lines]}
    body = data[match.end() :]
    if headers.get(b"content-length") != b"%d" % len(body) or len(headers) != len(lines) or not headers.keys().isdisjoint(_UNUSUAL):
        return None
    if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return asked, session_id, call, headers, body


class DirectHttp(LimitedHttpProtocol):
    """uvicorn's protocol with the short way in front. ``app.state.lane`` is None where every request has to pass the application."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._lane: Lane | None = cast(FastAPI, config.app).state.lane
        self._between_messages = True
        self._underway = False
        self._came_meanwhile = b""
        self._closing = False
        self._scope: dict[str, Any] = {}  # of the request that may go around: what was noted there must not be done again
        self._answered_at = 0.0  # by the loop's clock
        self._defaults: tuple[object, bytes] = (None, b"")

    def data_received(self, data: bytes) -> None:
        """Take a usual request; leave everything else to uvicorn."""
        if self._underway:  # answers leave in the order of the requests
            self._came_meanwhile += data
            self.flow.pause_reading()
            return
        idle = self._between_messages and (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused
        if idle and self._lane is not None and (call := self._read(self._lane, data)) is not None:
            self._head_came()
            self._underway = True
            self._lane.add(call)
        else:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Of uvicorn's parser: it has the beginning of a request."""
        self._between_messages = False
        super().on_message_begin()
        self.scope = cast(Any, {**self._scope, **self.scope})
        self._scope = {}

    def on_message_complete(self) -> None:
        """Of uvicorn's parser: it has the end."""
        super().on_message_complete()
        self._between_messages = True

    def shutdown(self) -> None:
        """The server stops: close the connection, but after the reply that is under way."""
        if self._underway:
            self._closing = True
        else:
            super().shutdown()

    def finish(self, head: bytes, body: bytes) -> None:
        """Send a reply: its head without the default headers and the empty line, and its body."""
        if not self.transport.is_closing():
            closing = b"connection: close\r\n" if self._closing else b""
            self.transport.write(b"".join((b"HTTP/1.1 200 OK\r\n", self._default_headers(), head, closing, b"\r\n", body)))
        self._scope = {}
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self._go_on()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle too long. Set once and asked again, where uvicorn makes a timer for each reply."""
        left_s = 0.0 if self.transport.is_closing() else self._answered_at + self.timeout_keep_alive - self.loop.time()
        if self._underway or left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(max(left_s, 0.1), self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def go_around(self, data: bytes) -> None:
        """Let uvicorn have a request after all."""
        if not self.transport.is_closing():
            super().data_received(data)
        self._go_on()

    def _go_on(self) -> None:
        self._underway = False
        if self._closing:
            super().shutdown()
        if self._came_meanwhile and not self.transport.is_closing():
            data, self._came_meanwhile = self._came_meanwhile, b""
            self.flow.resume_reading()
            self.data_received(data)

    def _read(self, lane: Lane, data: bytes) -> "_HttpCall | None":
        """The request as a call; None when it is not a usual one, or is not to be answered with an action."""
        started = time.perf_counter()
        if (found := read_head(data)) is None or not lane.open:
            return None
        asked, session, call, headers, body = found
        parts, session_id = lane.parts, session.decode()
        scope = self._scope = {"method": "POST", "path": asked[5:].decode(), "headers": headers.items(), "skillet.headers": headers}
        try:
            parts.doors.enter(scope)
            claimed = headers.get(DIGEST)
            if len(body) > parts.settings.max_body_bytes or (claimed is not None and claimed != digest(covered(asked, headers), body)):
                return None
            request, deadline = decode(body, _KINDS[call]), parts.deadlines.given(scope, session_id)
        except Exception:  # whatever it is: the application refuses it, and says why
            return None
        return _HttpCall(self, session_id, request, deadline, started, data, asked, headers)

    def _default_headers(self) -> bytes:
        """Date and server; uvicorn makes them anew every second."""
        headers = self.server_state.default_headers
        if self._defaults[0] is not headers:
            self._defaults = headers, b"".join(b"%s: %s\r\n" % header for header in headers)
        return self._defaults[1]


class _HttpCall:
    __slots__ = ("_asked", "_body", "_data", "_headers", "_protocol", "deadline", "request", "session_id", "started")

    def __init__(
        self,
        protocol: DirectHttp,
        session_id: str,
        request: schemas.Act | schemas.Transition,
        deadline: Deadline | None,
        started: float,
        data: bytes,
        asked: bytes,
        headers: Headers,
    ) -> None:
        self._protocol, self._data, self._asked, self._headers = protocol, data, asked, headers
        self.session_id, self.request, self.deadline, self.started = session_id, request, deadline, started
        self._body = b""

    def prepare(self, answer: schemas.Action) -> None:
        """Encode."""
        self._body = encode(answer)

    def send(self) -> None:
        """With what `service.framing` adds to every reply."""
        headers, body = self._headers, self._body
        number = given_request_id(headers.get(REQUEST_ID)) or new_request_id()
        took_ms = (time.perf_counter() - self.started) * 1000
        head = b"content-length: %d\r\ncontent-type: application/json\r\nserver-timing: app;dur=%.3f\r\nx-request-id: %s\r\n" % (
            len(body),
            took_ms,
            number.encode(),
        )
        if (claimed := headers.get(DIGEST)) is not None:
            head += b"%s: %s\r\n" % (DIGEST, digest(claimed, covered(self._asked, headers), b"200", body))
        self._protocol.finish(head, body)

    def go_around(self) -> None:
        """As it came."""
        self._protocol.go_around(self._data)
