"""Back-pressure and draining: more requests than can be answered soon are refused at once, and so are new ones while the process stops.

A request counts from the moment that the server has read it to the end of its reply, so what waits for its turn counts too. Without the
gate each of a thousand requests at once would wait for the other thousand, and be answered when nobody wants the answer any more.
"""

import logging
import time
from typing import Final

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Overloaded, ShuttingDown, Unavailable
from service.framing import request_id
from service.metrics import Metrics

_log = logging.getLogger(__name__)
_LOG_S: Final = 5.0
_ALWAYS_OPEN: Final = frozenset({"/livez", "/metrics"})
_READY: Final = "/readyz"


class Waiting:
    """Counts requests that wait for something else and use nothing meanwhile. A context manager."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self.count -= 1


class Gate:
    """ASGI middleware that lets at most ``limit`` HTTP requests in at a time, and none once the process stops.

    ``app.state.in_flight()`` tells how many requests the server has, and ``app.state.stopping`` whether it stops. Those that only wait
    are left out: `Waiting`, and websockets.
    """

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics, waiting: Waiting) -> None:
        self._app, self._limit, self._metrics, self._waiting = app, limit, metrics, waiting
        self._refused_since_log, self._logged_at = 0, -_LOG_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "websocket":
            with self._waiting:
                await self._app(scope, receive, send)
        elif scope["type"] == "http" and (error := self._refusal(scope)) is not None:
            await self._refuse(error, scope, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Unavailable | None:
        if scope["path"] in _ALWAYS_OPEN:
            return None
        state = scope["app"].state
        if state.stopping:
            return ShuttingDown("this process stops; the request had no effect", action="Send it again, on a new connection.")
        if state.in_flight() - self._waiting.count <= self._limit or scope["path"] == _READY:
            return None  # a balancer that took a busy process for a broken one would send all its load to the others
        self._tell()
        return Overloaded(
            "the service has more requests than it can answer soon; this one had no effect",
            expected=f"at most {self._limit} requests at a time in this process",
            action="Send it again after the seconds in Retry-After; if this goes on, add API processes (SKILLET_WORKERS).",
        )

    async def _refuse(self, error: Unavailable, scope: Scope, send: Send) -> None:
        self._metrics.errors.labels(error.code).inc()
        body = msgspec.json.encode(error.problem(request_id(scope)))
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(error.retry_after_s).encode()),
        ]
        if isinstance(error, ShuttingDown):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _tell(self) -> None:
        """Say it in the log, but not more often than every few seconds."""
        self._refused_since_log += 1
        if (now := time.monotonic()) - self._logged_at >= _LOG_S:
            _log.warning("overloaded: %d requests refused, more than %d at a time", self._refused_since_log, self._limit)
            self._refused_since_log, self._logged_at = 0, now
