"""The client: one service, many sessions."""

import hashlib
import itertools
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode
from weakref import WeakSet

from clients.sdk.channel import Channel, RestChannel, plain
from clients.sdk.errors import (
    ConcurrentUpdate,
    ConnectionFailed,
    DamagedReply,
    DamagedRequest,
    InvalidRequest,
    NothingListening,
    ServiceError,
    SkilletError,
    TooMany,
    UnexpectedReply,
    from_problem,
)
from clients.sdk.http_wire import Reply
from clients.sdk.models import BundleSummary, SessionInfo, parse
from clients.sdk.session import Session
from clients.sdk.transport import HttpTransport, Transport

DEFAULT_URL = "http://127.0.0.1:8000"
RETRIED_STATUS = frozenset({429, 502, 503, 504})
_COVERED = ("authorization", "idempotency-key", "skillet-deadline-ms", "skillet-sent-ms")
"""Headers that say what a request does: its digest covers them."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 0.5
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=plain).encode


class SkilletClient:
    """A synchronous client of one service, to be used as a context manager. Threads may share it; a Session belongs to one thread.

    ``timeout_s`` is how long one reply may keep silent. A request that is safe to send twice (reading; acting, stepping and posting,
    which the service knows again by their numbers; opening and starting, by an idempotency key) is sent again after a lost connection or
    a passing fault of the service, with growing delays (after a 429 not before the service says), until ``retry_for_s`` have passed since
    it was first sent; 0 turns that off. A
    client that never had a reply does not retry a refused connection: a wrong address should say so at once. ``token`` is sent as a
    bearer token (None: what ``SKILLET_TOKEN`` holds). ``ca_file``: certificates (PEM) that vouch for the service's, for ``https://``
    with one of your own (None: what ``SKILLET_CA_FILE`` names, else the system's). ``guards_actions``: hold actions inside the bundle's
    safety envelope here too, whatever comes over the network.
    ``stream``: the calls of control loops go as frames over a websocket, one for each session, instead of as requests; the same results
    in less time (needs the extra ``stream``).
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = 10.0,
        retry_for_s: float = 30.0,
        token: str | None = None,
        ca_file: str | None = None,
        guards_actions: bool = True,
        transport: Transport | None = None,
        stream: bool = False,
    ) -> None:
        self._stream, self._channels = stream, WeakSet[Channel]()
        ca_file = ca_file or os.environ.get("SKILLET_CA_FILE") or None
        self._transport = HttpTransport(url, ca_file=ca_file) if transport is None else transport
        self._timeout_s, self._retry_for_s = timeout_s, retry_for_s
        self._headers = {"accept": "application/json", "user-agent": "skillet-sdk"}
        if token := token or os.environ.get("SKILLET_TOKEN"):
            self._headers["authorization"] = _bearer(token)
        self._json_headers = {**self._headers, "content-type": "application/json"}
        self.guards_actions = guards_actions
        self._had_reply = self._had_digest = False

    def open_session(
        self,
        bundle: str | None = None,
        *,
        seed: int = 0,
        conditioning_episodes: int | None = None,
        exploration: str | None = None,
        finetuning: bool = True,
        deterministic: bool = False,
        ttl_s: int = 86400,
        share_skills: bool = False,
        promotion: str = "automatic",
    ) -> Session:
        """Open a session with one of the service's bundles (None: its first). Sent twice, it opens one.

        ``exploration`` is ``prior``, ``switching``, ``thompson``, ``alternating`` or, where the bundle offers them, ``belief`` and
        ``novelty``. None: as the bundle says, and so with ``conditioning_episodes``.

        Raises UnknownBundle, InvalidRequest, ConnectionFailed.
        """
        body: dict[str, object] = {
            "seed": seed,
            "finetuning": finetuning,
            "deterministic": deterministic,
            "ttl_s": ttl_s,
            "share_skills": share_skills,
            "promotion": promotion,
        }
        chosen = {"bundle": bundle, "exploration": exploration, "conditioning_episodes": conditioning_episodes}
        body |= {name: value for name, value in chosen.items() if value is not None}
        return Session(self, parse(SessionInfo, self.call("POST", "/v1/sessions", body, key=new_key())))

    def session(self, session_id: str) -> Session:
        """Attach to a session that is there. Raises UnknownSession, SessionClosed, SessionExpired."""
        return Session(self, parse(SessionInfo, self.call("GET", f"/v1/sessions/{quote(session_id, safe='')}")))

    def list_sessions(self, page_size: int = 50) -> Iterator[SessionInfo]:
        """Every session, page by page."""
        cursor: str | None = None
        while True:
            query = urlencode({"limit": page_size} | ({} if cursor is None else {"cursor": cursor}))
            page = self.call("GET", f"/v1/sessions?{query}")
            yield from (parse(SessionInfo, item) for item in page["sessions"])
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def bundles(self) -> list[BundleSummary]:
        """The bundles that the service has; the first is its default."""
        return [parse(BundleSummary, item) for item in self.call("GET", "/v1/bundles")["bundles"]]

    def ready(self) -> bool:
        """Whether the service says that it is ready. False too when nothing listens; raises what else keeps it from answering."""
        try:
            return self._send("GET", "/readyz", None, self._headers, self._timeout_s).status == 200
        except NothingListening:
            return False

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        repeatable: bool = True,
        key: str | None = None,
        extra_s: float = 0.0,
        budget_s: float | None = None,
    ) -> Any:
        """Send one request and decode its reply. ``key`` is its idempotency key; ``extra_s`` is added to the time that the reply may take.

        With ``budget_s`` it is sent once, with its deadline, and may take that long.

        Raises ServiceError for a problem+json answer, ConnectionFailed, UnexpectedReply.
        """
        data = None if body is None else _encode(body).encode()
        headers = self._headers if data is None else self._json_headers
        if key is not None:
            headers = {**headers, "idempotency-key": key}
        if budget_s is not None:
            headers = {**headers, "skillet-deadline-ms": f"{budget_s * 1000:.3f}", "skillet-sent-ms": f"{time.monotonic() * 1000:.3f}"}
        return self.retried(
            lambda timeout_s: _content(self._send(method, path, data, headers, timeout_s)),
            repeatable=repeatable,
            extra_s=extra_s,
            budget_s=budget_s,
        )

    def retried(
        self, attempt: Callable[[float], Any], *, repeatable: bool = True, extra_s: float = 0.0, budget_s: float | None = None
    ) -> Any:
        """What ``attempt`` returns, which is given its timeout in seconds, and is made again as the class says. Raises as `call`."""
        stop_at = time.monotonic() + self._retry_for_s
        delay_s = _FIRST_DELAY_S
        for attempts in itertools.count(1):
            try:
                return attempt(self._timeout_s + extra_s if budget_s is None else budget_s)
            except ServiceError as refusal:
                error: SkilletError = refusal
                again = repeatable and (refusal.status in RETRIED_STATUS or isinstance(refusal, ConcurrentUpdate | DamagedRequest))
            except ConnectionFailed as failure:
                error, again = failure, self._had_reply and (repeatable or not failure.request_sent)
            except UnexpectedReply as other:
                error, again = other, repeatable and other.status in RETRIED_STATUS
            pause_s = random.uniform(delay_s / 2, delay_s)  # jitter: clients that lost one service do not come back in step
            if isinstance(error, TooMany) and error.retry_after_s is not None:
                pause_s += error.retry_after_s
            if not again or budget_s is not None or time.monotonic() + pause_s > stop_at:
                error.attempts = attempts
                raise error
            time.sleep(pause_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
        raise AssertionError("unreachable")

    def channel(self, session_id: str, session_path: str) -> Channel:
        """What carries the calls of a session's control loop."""
        if not self._stream:
            return RestChannel(self, session_path)
        from clients.sdk.stream import StreamChannel

        if not isinstance(self._transport, HttpTransport):
            raise InvalidRequest("a stream needs the SDK's own transport", expected="transport=None with stream=True")
        channel = StreamChannel(self, self._transport, session_id, self._headers)
        self._channels.add(channel)
        return channel

    def fetch(self, path: str) -> bytes:
        """The content of a file that the service has. Raises as `call`."""
        reply = self._send("GET", path, None, self._headers, self._timeout_s)
        if reply.status >= 400:
            raise _refusal(reply)
        return reply.body

    def _send(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """One request. Its digest, and the reply's, tell when the link changes bytes; a service that sends none is taken as it is."""
        asked = "\n".join([f"{method} {path}", *[f"{name}: {headers[name]}" for name in _COVERED if name in headers]]).encode()
        own = _digest(asked, data or b"")
        reply = self._transport.request(method, path, data, {**headers, "skillet-digest": own}, timeout_s)
        self._had_reply = True
        claimed = reply.headers.get("skillet-digest")
        if claimed is None and not self._had_digest:
            return reply
        if claimed != _digest(own.encode(), asked, str(reply.status).encode(), reply.body):
            self._transport.close()  # what else is on the way may be damaged too
            raise DamagedReply(
                "the reply was damaged on its way: it does not fit its digest", action="look at the link; use TLS", request_sent=True
            )
        self._had_digest = True
        return reply

    def close(self) -> None:
        """Close the connections. Sessions stay open."""
        for channel in tuple(self._channels):
            channel.close()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def new_key() -> str:
    """A fresh idempotency key."""
    return uuid.uuid4().hex


def _bearer(token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest("the token cannot be sent", expected="what 'python -m service tokens create' printed, without white space")
    return f"Bearer {token}"


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"\n".join(parts), digest_size=12).hexdigest()


def _content(reply: Reply) -> Any:
    if reply.status >= 400:
        raise _refusal(reply)
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise _not_ours("the reply is no JSON", "application/json", reply) from error


def _refusal(reply: Reply) -> SkilletError:
    problem: Any = None
    with suppress(ValueError):
        problem = json.loads(reply.body)
    if isinstance(problem, Mapping) and ("code" in problem or "title" in problem):
        return from_problem(reply.status, problem, reply.headers.get("x-request-id"), reply.headers.get("retry-after"))
    return _not_ours(f"status {reply.status} without an explanation", "application/problem+json", reply)


def _not_ours(detail: str, expected: str, reply: Reply) -> UnexpectedReply:
    received = f"{reply.headers.get('content-type')}: {reply.body[:60]!r}"
    action = "check that this address is Skillet's, not another service's or a proxy's"
    return UnexpectedReply(detail, status=reply.status, expected=expected, received=received, action=action)
