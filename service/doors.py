"""Who is let in: every request passes here before anything reads its body.

    caller = parts.doors.enter(scope)                   # HTTP request or websocket handshake: who it is, and may they make this call?
    parts.doors.check(caller, "POST", session_path)     # again for each message of a connection, or each item of a batch

`Doorway`, the middleware, calls ``enter`` for everything that comes; an endpoint reads the result with ``caller_of(scope)``. An endpoint
that names sessions elsewhere than in its path (a websocket's frames, a batch) calls ``check`` for each, with the path that the same call
has over REST, such as ``f"/v1/sessions/{session_id}/step"``: it looks the token up again, so that a revoked one ends a connection too.
Neither costs a round trip to Redis. A new endpoint needs a line in `service.roles`.

Tokens come as ``Authorization: Bearer TOKEN``; ``Api-Key TOKEN`` is taken too, which is what openpi's client sends.
"""

import ipaddress
import logging
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request, Response
from redis.exceptions import RedisError
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, InternalError, MethodNotAllowed, NotFound, ServiceError, Unauthorized
from service.framing import header
from service.limits import RequestRates
from service.roles import Access, Role, Rule, Rules
from service.sessions import owner_of, unknown_session
from service.settings import Settings
from service.storage import unavailable
from service.tokens import NOBODY, KnownTokens

_log = logging.getLogger(__name__)
_CALLER: Final = "skillet.caller"
_COUNTED: Final = "skillet.counted"
_SCHEMES: Final = ("bearer ", "api-key ")
_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-f:]+\]|[^:/\[\]]+)(?::\d+)?")


@dataclass(frozen=True)
class Caller:
    """Who made a request. ``role`` is None for a stranger; ``token_id`` is None for all who came without a token."""

    name: str
    role: Role | None
    owner: str
    token_id: str | None

    @property
    def sees_all(self) -> bool:
        """Whether it may read sessions of others."""
        return self.role in (Role.OPERATOR, Role.ADMIN)

    def owns(self, session_id: str) -> bool:
        """Whether a session is its own."""
        return owner_of(session_id) == self.owner


STRANGER: Final = Caller("stranger", None, "", None)
ANYBODY: Final = Caller("anybody", Role.ADMIN, NOBODY, None)
"""Everybody, where no token is asked for."""


class Doors:
    """Knows who may do what here."""

    def __init__(self, settings: Settings, tokens: KnownTokens, rules: Rules | None = None) -> None:
        self._open = settings.insecure_no_auth
        self._always = not is_loopback(settings.host)
        self._tokens, self._rules = tokens, rules or Rules()
        self._rates = RequestRates(settings)
        self._callers: dict[str, Caller] = {}  # by token id: made once, since this is on the way of every control step

    def enter(self, scope: Scope) -> Caller:
        """Who makes this request or opens this websocket, which they may.

        Raises Unauthorized, TooManyRequests, Forbidden, UnknownSession (also for a session that is another's), NotFound or
        MethodNotAllowed; redis.RedisError when the tokens are not known and Redis cannot tell.
        """
        method, path = scope.get("method", "WS"), scope["path"]
        found = self._rules.find(method, path)
        if found is not None and found[0].stranger is Access.YES:
            return STRANGER
        caller = self._identify(scope)
        self._count(caller, scope)
        if found is None:
            raise self._nothing_there(method, path)
        _permit(caller, *found)
        return caller

    def check(self, caller: Caller, method: str, path: str, noted: MutableMapping[str, Any] | None = None) -> None:
        """Whether ``caller``, who entered earlier, may make this call now. Raises as `enter`.

        A call that is checked twice on its way brings the same ``noted``, and counts once.
        """
        if caller.token_id is not None:
            self._tokens.check(caller.token_id)
        self._count(caller, {} if noted is None else noted)
        if (found := self._rules.find(method, path)) is None:
            raise self._nothing_there(method, path)
        _permit(caller, *found)

    def _count(self, caller: Caller, noted: MutableMapping[str, Any]) -> None:
        """Count a call, once. Strangers are not counted: they could use up what is there for others."""
        if _COUNTED not in noted:
            self._rates.take(None if caller.token_id is None else caller.owner)
            noted[_COUNTED] = True

    def _identify(self, scope: Scope) -> Caller:
        if self._open:
            _check_origin(scope, own=True)
            return ANYBODY
        if not (self._always or self._tokens.any):
            _check_origin(scope)
            return ANYBODY
        token = self._tokens.find(_credentials(scope))
        caller = self._callers.get(token.token_id)
        if caller is None:
            caller = self._callers[token.token_id] = Caller(token.name, token.role, token.owner, token.token_id)
        return caller

    def _nothing_there(self, method: str, path: str) -> ServiceError:
        asked = f"{method} {path}"[:200]
        if allowed := self._rules.methods(path):
            return MethodNotAllowed("this path has no such method", expected=allowed, received=asked, action="See /docs for the methods.")
        return NotFound("nothing is at this path", received=asked, action="See /docs for the paths.")


class Doorway:
    """ASGI middleware: lets in whom `Doors` lets in."""

    def __init__(self, app: ASGIApp, doors: Doors, refuse: Callable[[Request, ServiceError], Response]) -> None:
        self._app, self._doors, self._refuse = app, doors, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the caller noted, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal: ServiceError
        try:
            scope[_CALLER] = self._doors.enter(scope)
        except ServiceError as error:
            refusal = error
        except RedisError as error:
            refusal = unavailable(error)
        except Exception:
            _log.exception("a request could not be looked at")
            refusal = InternalError("the service failed; its log has the cause", action="Report it with the request_id.")
        else:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            await self._refuse(Request(scope), refusal)(scope, receive, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await self._refuse(Request({**scope, "type": "http"}), refusal)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail[:120]})


def caller_of(scope: Scope | HTTPConnection) -> Caller:
    """Who made a request that was let in."""
    caller: Caller = scope[_CALLER]
    return caller


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_origin(scope: Scope, *, own: bool = False) -> None:
    """Where no token is asked for: any page in a browser here can send to this machine, and the browser says which page it is.

    ``own``: the service's own pages, under whatever name it is reached, may too.
    """
    if (origin := header(scope, b"origin")) is None:
        return
    found = _ORIGIN.fullmatch(origin.decode("latin-1"))
    its_own = own and origin.partition(b"://")[2] == header(scope, b"host")
    if not its_own and not (found and is_loopback(found[1].strip("[]"))):
        raise Forbidden(
            "a web page of another site may not use this service",
            expected="no Origin, or one of this machine",
            received=origin[:100].decode("latin-1"),
            action="Make a token (python -m service tokens create), and let the page send it.",
        )


def _permit(caller: Caller, rule: Rule, session_id: str) -> None:
    access = rule.access(caller.role)
    if access is Access.YES or (access is Access.OWN and (not session_id or caller.owns(session_id))):
        return
    if session_id and not caller.sees_all and not caller.owns(session_id):
        raise unknown_session(session_id)
    whose = " in a session of another" if access is Access.OWN else ""
    raise Forbidden(
        f"a token of the role {caller.role} may not do this{whose}",
        expected=[role.value for role in Role if rule.access(role) is Access.YES],
        received=f"{caller.role} {caller.name}",
        action="Use a token of another role; docs/security.md says which role may do what.",
    )


def _credentials(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            text = str(value, "latin-1")
            for scheme in _SCHEMES:
                if text[: len(scheme)].lower() == scheme:
                    return text[len(scheme) :].strip()
            raise Unauthorized("the header Authorization cannot be read", expected="Authorization: Bearer TOKEN", tried=True)
    raise Unauthorized(
        "this service asks for a token",
        expected="Authorization: Bearer TOKEN",
        action="Ask whoever runs it for one: python -m service tokens create. The SDK takes it from SKILLET_TOKEN.",
    )
