"""uvicorn's HTTP protocol with a limit on what it keeps of a request before anybody has looked at it.

httptools, which parses, keeps a head for as long as it comes, and so would let anybody who can connect fill the memory. Everything of a
request that is not its body counts: request line, headers, chunk sizes, trailers. Bodies are for `service.wire` to limit.
"""

from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import HeadersTooLarge, HeadTimeout, MalformedRequest, ServiceError
from service.framing import new_request_id

MAX_HEAD_BYTES: Final = 64 * 2**10
_LEAST_PART: Final = 2**10  # of a body, whose head left hardly any room: in parts of a byte it would take long
HEAD_TIMEOUT_S: Final = 20.0
"""How long a connection may take for the head of its next request once that has begun, or the first has not."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _beside_body = 0
    _head_timer: Any = None

    def connection_made(self, transport: Any) -> None:
        """Begin, and wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is too much: in parts, none of which can hold the end of a head that is too large."""
        while data and not self.transport.is_closing() and self.transport.get_protocol() is self:
            room = MAX_HEAD_BYTES - self._beside_body
            if self._head_timer is None:  # no head is under way
                room = max(room, _LEAST_PART)
            part, data = data[:room], data[room:]
            if part:
                self._beside_body += len(part)
                super().data_received(part)
            if (not part or self._beside_body > MAX_HEAD_BYTES) and not self.transport.is_closing():
                self._refuse(
                    HeadersTooLarge(
                        f"the request has more than {MAX_HEAD_BYTES} bytes beside its body",
                        expected=f"at most {MAX_HEAD_BYTES} bytes of request line, headers and chunk sizes",
                        action="Send fewer or shorter headers, and larger chunks.",
                    )
                )

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn: what came is no HTTP."""
        self._refuse(
            MalformedRequest(
                "what came cannot be read as HTTP/1.1", expected="a request of HTTP/1.1", action="Look at the client, or the link."
            )
        )

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._beside_body = max(self._beside_body - len(body), 0)  # less than nothing: the request began in the part that ended another
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._beside_body = 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_overdue)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(
                HeadTimeout(
                    f"no request's head came within {HEAD_TIMEOUT_S:g} s", action="Send the whole head at once; connect when there is one."
                )
            )

    def _refuse(self, error: ServiceError) -> None:
        """Answer, unless an answer has begun, and close."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            number = new_request_id()
            body = msgspec.json.encode(error.problem(number))
            head = f"HTTP/1.1 {error.status} {error.title}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}x-request-id: {number}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()
