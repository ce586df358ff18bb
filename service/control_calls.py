"""The control loop's calls go straight to their endpoints: past routing, argument solving, exit stacks and FastAPI's own middleware.

They are routes too, for OpenAPI and for whatever is no well-formed call. The application's own middleware is around both ways.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from fastapi import Request, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

Handlers = Mapping[Any, Any]  # error class -> async function of request and error, as FastAPI keeps them
_SESSIONS: Final = "/v1/sessions/"
_CALLS: Final = "/v1/sessions/{session_id}/"


class ControlCalls:
    """Middleware, the innermost: answers what `routes` answer to POST, below a session or at a fixed path.

    Errors go to the application's `handlers`.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], handlers: Handlers) -> None:
        self._app, self._handlers = app, handlers
        endpoints = {route.path: route.endpoint for route in routes if isinstance(route, Route) and "POST" in (route.methods or ())}
        self._in_session: dict[str, Callable[[Request, str], Awaitable[Response]]] = {
            path.removeprefix(_CALLS): endpoint for path, endpoint in endpoints.items() if path.startswith(_CALLS)
        }
        self._fixed: dict[str, Callable[[Request], Awaitable[Response]]] = {
            path: endpoint for path, endpoint in endpoints.items() if "{" not in path
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a control loop's call; pass on everything else."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            if path.startswith(_SESSIONS):
                session_id, _, call = path[len(_SESSIONS) :].partition("/")
                if (in_session := self._in_session.get(call)) is not None:
                    request = Request(scope, receive)
                    await self._answer(in_session(request, session_id), request, send)
                    return
            elif (fixed := self._fixed.get(path)) is not None:
                request = Request(scope, receive)
                await self._answer(fixed(request), request, send)
                return
        await self._app(scope, receive, send)

    async def _answer(self, answering: Awaitable[Response], request: Request, send: Send) -> None:
        try:
            response = await answering
        except Exception as error:
            kind = next(kind for kind in type(error).__mro__ if kind in self._handlers)
            response = await self._handlers[kind](request, error)
            await response(request.scope, request.receive, send)
            if kind is Exception:
                raise  # for the server to log
        else:
            await response(request.scope, request.receive, send)
