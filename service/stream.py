"""`/v1/stream`: the control loop in msgpack frames over a websocket, one session a connection.

Frames are answered one at a time, in their order. A client that sends faster than it is answered, or does not read, is not read from
either: TCP holds it back. A connection holds no state of its own beyond which session it speaks of, so that after a drop a client attaches
again and repeats its last frame, which has one effect.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import MutableMapping
from typing import Any, Final

import msgspec
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from service import frames, schemas, views
from service.deadlines import Deadline
from service.direct_stream import EXTENSION, DirectStream
from service.doors import caller_of
from service.errors import InvalidRequest, ServiceError, Unauthorized
from service.faults import Outages, as_problem
from service.idempotency import check_key
from service.lane import Lane
from service.opening import create
from service.parts import Parts
from service.session_errors import Gone
from service.session_state import Loaded

UNSUPPORTED_DATA: Final = 1003
REFUSED: Final = 4000
"""Added to the HTTP status of the problem for which a connection is closed: 4404, 4410 and so on."""
SILENT: Final = 4408
FIRST_FRAME_S: Final = 10.0
_AS_REST: Final = {
    frames.Open: ("POST", ""),
    frames.Attach: ("GET", "/{}"),
    frames.Start: ("POST", "/{}/episodes"),
    frames.ActFrame: ("POST", "/{}/act"),
    frames.StepFrame: ("POST", "/{}/step"),
    frames.StepsFrame: ("POST", "/{}/steps"),
    frames.TransitionsFrame: ("POST", "/{}/transitions"),
    frames.RewardsFrame: ("POST", "/{}/rewards"),
    frames.End: ("POST", "/{}/episodes/end"),
}
"""The call below ``/v1/sessions`` that does the same: who may make it may send the frame."""

_log = logging.getLogger(__name__)
_outages = Outages()
streams = APIRouter()


@streams.websocket("/v1/stream")
async def stream(websocket: WebSocket) -> None:
    """Speak with one client until it leaves."""
    if not same_origin(websocket):
        await websocket.close()  # before it is accepted: HTTP 403
        return
    offered = websocket.scope["subprotocols"]
    chosen = next((name for name in (frames.WITH_DIGESTS, frames.PLAIN) if name in offered), None)
    await websocket.accept(chosen)
    conversation = _Conversation(websocket, digests=chosen == frames.WITH_DIGESTS)
    try:
        await conversation.run()
    except WebSocketDisconnect:
        return


def same_origin(websocket: WebSocket) -> bool:
    """Whether no page of another site asks: browsers let any page open a websocket to any address, and say which page it is."""
    origin = websocket.headers.get("origin")
    return origin is None or origin.partition("://")[2] == websocket.headers.get("host")


class _Conversation:
    def __init__(self, websocket: WebSocket, *, digests: bool) -> None:
        self._websocket, self._digests = websocket, digests
        self._parts: Parts = websocket.app.state.parts
        self._name = secrets.token_hex(8)
        self._caller = caller_of(websocket)
        self._lane: Lane | None = websocket.app.state.lane
        self._session_id: str | None = None
        self._idle = False  # waits for a frame
        self._direct: DirectStream | None = websocket.scope.get("extensions", {}).get(EXTENSION)

    async def run(self) -> None:
        """Answer frames until the connection ends."""
        if self._direct is not None and self._lane is not None:
            self._direct.take = self._take
        while True:
            try:
                self._idle = True
                async with asyncio.timeout(FIRST_FRAME_S if self._session_id is None else None):
                    message = await self._websocket.receive()
            except TimeoutError:
                await self._websocket.close(SILENT, "no frame that opens or attaches to a session came")
                return
            self._idle = False
            if message["type"] == "websocket.disconnect":
                return
            frame = message.get("bytes")
            if frame is None:
                await self._websocket.close(UNSUPPORTED_DATA, "expected binary frames with msgpack")
                return
            if (code := await self._answer(frame, message, time.perf_counter())) is not None:
                await self._websocket.close(code)
                return

    def _take(self, data: bytes) -> bool:
        """Whether a frame was taken: an act or step. What is wrong with one is told by the application, which has it back at once."""
        started, session_id = time.perf_counter(), self._session_id
        noted: dict[str, Any] = {}
        if session_id is None or not self._idle or self._direct is None or self._lane is None:
            return False
        try:
            frame = frames.decode(frames.unsealed(data) if self._digests else data)
            if not isinstance(frame, frames.StepFrame | frames.ActFrame):
                return False
            method, path = _AS_REST[type(frame)]
            self._parts.doors.check(self._caller, method, "/v1/sessions" + path.format(session_id), noted)
            deadline = self._deadline(session_id, frame, noted)
        except Exception:  # whatever it is: the frame gets its problem where all do
            self._direct.go_around(data, noted)
        else:
            self._lane.add(_FrameCall(self._direct, session_id, frame, deadline, started, data, noted, digests=self._digests))
        return True

    async def _answer(self, data: bytes, noted: MutableMapping[str, Any], started: float) -> int | None:
        """Send the reply to a frame. Returns the code to close the connection with, if the frame's problem ends it."""
        frame_id, code, content = 0, None, b""
        try:
            content = frames.unsealed(data) if self._digests else data
            frame = frames.decode(content)
            frame_id = frame.id
            status, body = await self._call(frame, noted)
        except Exception as error:  # whatever it is, it is told in a frame
            frame_id = frame_id or frames.number_of(content)
            problem = self._problem(error, frame_id)
            status, body = problem.status, problem.problem(f"{self._name}.{frame_id}")
            if self._session_id is None or isinstance(problem, Gone | Unauthorized):
                code = REFUSED + status
        await self._websocket.send_bytes(_reply_to(data, frame_id, status, started, body, digests=self._digests))
        return code

    async def _call(self, frame: frames.AnyFrame, noted: MutableMapping[str, Any]) -> tuple[int, Any]:
        session_id = self._session_id
        method, path = _AS_REST[type(frame)]
        named = frame.session_id if isinstance(frame, frames.Attach) else session_id
        self._parts.doors.check(self._caller, method, "/v1/sessions" + path.format(named), noted)
        if session_id is None or isinstance(frame, frames.Open | frames.Attach):
            return self._begin(frame)
        loop, metrics = self._parts.loop, self._parts.metrics
        answer: Any
        match frame:
            case frames.StepFrame():
                with metrics.step_seconds.time():
                    answer = await loop.step(session_id, frame.body, self._deadline(session_id, frame, noted))
            case frames.ActFrame():
                with metrics.act_seconds.time():
                    answer = await loop.act(session_id, frame.body, self._deadline(session_id, frame, noted))
            case frames.StepsFrame():
                with metrics.step_seconds.time():
                    answer = await loop.steps(session_id, frame.body, self._deadline(session_id, frame, noted))
            case frames.TransitionsFrame():
                with metrics.transitions_seconds.time():
                    answer = await loop.add_transitions(session_id, frame.body)
            case frames.RewardsFrame():
                answer = await loop.add_rewards(session_id, frame.body)
            case frames.Start():
                return 201, await loop.start_episode(session_id, check_key(frame.key, "$.key"))
            case frames.End():
                answer = await loop.end_episode(session_id)
        return 200, answer

    def _begin(self, frame: frames.AnyFrame) -> tuple[int, Any]:
        parts = self._parts
        if self._session_id is not None:
            raise InvalidRequest("this connection speaks of a session already", action="Open another connection for another session.")
        if isinstance(frame, frames.Open):
            loaded = create(parts, frame.body, check_key(frame.key, "$.key"), self._caller)
        elif isinstance(frame, frames.Attach):
            loaded = parts.store.load(frame.session_id)
        else:
            raise InvalidRequest(
                "no session yet", expected="a frame of type open or attach first", action="Open a session, or attach to one."
            )
        view = self._view(loaded)
        self._session_id = loaded.session.session_id
        return (201 if isinstance(frame, frames.Open) else 200), view

    def _view(self, loaded: Loaded) -> Any:
        parts = self._parts
        return views.session_view(loaded, parts.store.task_version(loaded.keys), networks=parts.loop.networks(loaded))

    def _deadline(self, session_id: str, frame: frames.Timed, noted: MutableMapping[str, Any]) -> Deadline | None:
        return None if frame.deadline_ms is None else self._parts.deadlines.of(noted, session_id, frame.deadline_ms, frame.sent_ms)

    def _problem(self, error: Exception, frame_id: int) -> ServiceError:
        problem = as_problem(error, _outages)
        self._parts.metrics.errors.labels(problem.code).inc()
        if problem.status == 500:
            cause = None if isinstance(error, ServiceError) else error
            _log.error("frame %s.%d: %s: %s", self._name, frame_id, problem.code, problem.detail, exc_info=cause)
        return problem


class _FrameCall:
    """An act or step frame in the lane."""

    def __init__(
        self,
        connection: DirectStream,
        session_id: str,
        frame: frames.StepFrame | frames.ActFrame,
        deadline: Deadline | None,
        started: float,
        data: bytes,
        noted: dict[str, Any],
        *,
        digests: bool,
    ) -> None:
        self._connection, self._id, self._data, self._noted, self._digests = connection, frame.id, data, noted, digests
        self.session_id, self.request, self.deadline, self.started = session_id, frame.body, deadline, started
        self._body = msgspec.Raw()

    def prepare(self, answer: schemas.Action) -> None:
        """Encode; the time that it took is not known yet."""
        self._body = msgspec.Raw(frames.encode(answer))

    def send(self) -> None:
        """With the time in the service."""
        self._connection.finish(_reply_to(self._data, self._id, 200, self.started, self._body, digests=self._digests))

    def go_around(self) -> None:
        """As it came."""
        self._connection.go_around(self._data, self._noted)


def _reply_to(data: bytes, frame_id: int, status: int, started: float, body: Any, *, digests: bool) -> bytes:
    reply = frames.encode(frames.ReplyFrame(frame_id, status, round((time.perf_counter() - started) * 1000, 3), body))
    return frames.sealed(reply, data[: frames.DIGEST_BYTES]) if digests else reply
