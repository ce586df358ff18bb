"""What every reply carries, and how damage on the way is found: request id, ``Server-Timing``, and a digest for clients that send one.

``Skillet-Digest`` on a request is a digest of its method, path, body and those headers that say what it does; the reply's is of the
request's, of the same of what came, the status and the body. A client that checks it never acts on a number that a bad link changed, nor
takes a refusal of something that it never sent for its own. With TLS it is needless.
"""

import hashlib
import itertools
import re
import secrets
import time
from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DIGEST: Final = b"skillet-digest"
REQUEST_ID: Final = b"x-request-id"
_COVERED: Final = (b"authorization", b"idempotency-key", b"skillet-deadline-ms", b"skillet-sent-ms")
_PROCESS = secrets.token_hex(5)
_count = itertools.count()
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def digest(*parts: bytes) -> bytes:
    """BLAKE2b over the parts, 24 hexadecimal digits."""
    return hashlib.blake2b(b"\n".join(parts), digest_size=12).hexdigest().encode()


def covered(line: bytes, given: Mapping[bytes, bytes]) -> bytes:
    """What of a request's head its digest covers: ``METHOD PATH``, and a line for each of the headers that say what it does."""
    return b"\n".join([line, *[b"%s: %s" % (name, given[name]) for name in _COVERED if name in given]])


def request_digest(scope: Scope, body: bytes) -> bytes:
    """The digest that the request should have."""
    return digest(_asked(scope), body)


def _asked(scope: Scope) -> bytes:
    query: bytes = scope.get("query_string", b"")
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return covered(b"%s %s%s" % (scope["method"].encode(), path.partition(b"?")[0], b"?" + query if query else b""), headers(scope))


def header(scope: Scope, name: bytes) -> bytes | None:
    """A header of the request, by its name in lower case."""
    return headers(scope).get(name)


def headers(scope: Scope) -> dict[bytes, bytes]:
    """All headers of the request by their names in lower case; of those that came twice, the last."""
    found: dict[bytes, bytes] | None = scope.get("skillet.headers")
    if found is None:
        found = scope["skillet.headers"] = dict(scope["headers"])
    return found


def request_id(scope: Scope) -> str:
    """The id of a request: the client's own (``X-Request-Id``), or a fresh one."""
    found: str | None = scope.get("skillet.request_id")
    if found is None:
        found = scope["skillet.request_id"] = new_request_id()
    return found


def new_request_id() -> str:
    """A fresh id."""
    return f"{_PROCESS}{next(_count):06x}"


def given_request_id(value: bytes | None) -> str | None:
    """The id that a client gave its request, if it can be used."""
    return value.decode() if value is not None and _ID.fullmatch(value) else None


class Framing:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass HTTP requests on, and frame their replies."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _FramedReply(scope, send, time.perf_counter())
        await self._app(scope, receive, reply.send)


class _FramedReply:
    def __init__(self, scope: Scope, send: Send, started: float) -> None:
        self._scope, self._send, self._started = scope, send, started
        if (own_id := given_request_id(header(scope, REQUEST_ID))) is not None:
            scope["skillet.request_id"] = own_id
        self._digest = header(scope, DIGEST)
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        """Hold the head back until the body is there, which all but files have in one piece."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            start["headers"] = [*start["headers"], *self._added(start["status"], message)]
            await self._send(start)
        await self._send(message)

    def _added(self, status: int, message: Message) -> list[tuple[bytes, bytes]]:
        took_ms = (time.perf_counter() - self._started) * 1000
        added = [(b"server-timing", b"app;dur=%.3f" % took_ms), (REQUEST_ID, request_id(self._scope).encode())]
        if self._digest is not None and not message.get("more_body", False):
            added.append((DIGEST, digest(self._digest, _asked(self._scope), str(status).encode(), message.get("body", b""))))
        return added
