"""The control loop's calls go straight to their endpoints: past routing, argument solving, exit stacks and FastAPI's own middleware.

They are routes too, for OpenAPI and for whatever is no well-formed call. The application's own middleware is around both ways.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from fastapi import Request, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

Endpoint = Callable[[Request, str], Awaitable[Response]]
Handlers = Mapping[Any, Any]  # error class -> async function of request and error, as FastAPI keeps them
_SESSIONS: Final = "/v1/sessions/"
_CALLS: Final = "/v1/sessions/{session_id}/"


class ControlCalls:
    """Middleware, the innermost: answers what `routes` below a session answer to POST; errors go to the application's `handlers`."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], handlers: Handlers) -> None:
        self._app, self._handlers = app, handlers
        self._endpoints: dict[str, Endpoint] = {
            route.path.removeprefix(_CALLS): route.endpoint
            for route in routes
            if isinstance(route, Route) and "POST" in (route.methods or ())
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a control loop's call; pass on everything else."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(_SESSIONS):
            session_id, _, call = scope["path"][len(_SESSIONS) :].partition("/")
            endpoint = self._endpoints.get(call)
            if endpoint is not None:
                await self._answer(endpoint, Request(scope, receive), session_id, send)
                return
        await self._app(scope, receive, send)

    async def _answer(self, endpoint: Endpoint, request: Request, session_id: str, send: Send) -> None:
        try:
            response = await endpoint(request, session_id)
        except Exception as error:
            kind = next(kind for kind in type(error).__mro__ if kind in self._handlers)
            response = await self._handlers[kind](request, error)
            await response(request.scope, request.receive, send)
            if kind is Exception:
                raise  # for the server to log
        else:
            await response(request.scope, request.receive, send)
