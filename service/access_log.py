"""A log line for each request, where ``SKILLET_ACCESS_LOG`` asks for it. Elsewhere this middleware is not there, and costs nothing."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.framing import request_id

_log = logging.getLogger("skillet.access")


class AccessLog:
    """ASGI middleware that logs method, path, status, duration and request id of every HTTP request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, then log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            took_ms = round((time.perf_counter() - started) * 1000, 3)
            fields = {"method": scope["method"], "path": scope["path"], "status": status, "duration_ms": took_ms}
            _log.info("request", extra={**fields, "request_id": request_id(scope)})
