"""The short way of the control loop's calls: those that came together are answered together, below the application.

What an application and its middleware do around a call costs more than the call. So the protocols of HTTP and of `/v1/stream` offer each
``act`` and ``step`` here first (`service.direct_http`, `service.stream`). All that came in one turn of the event loop are decoded in one
call of the graph and saved in one round trip; while Redis works the replies are written; they leave once it has answered.

Only the usual is answered here. Whatever is not (refused, changed elsewhere, late, too much at a time, Redis gone) goes the long way, as if
nothing had been tried: there is one place for errors, and it is not here.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

from fastapi import FastAPI
from redis.exceptions import RedisError

from service import schemas
from service.batches import Batches, Begun
from service.deadlines import Deadline
from service.parts import Parts

_log = logging.getLogger(__name__)
_MOST: Final = 32
"""Calls that are answered together: more would wait for the last of them."""


class Call(Protocol):
    """A call that can be answered here, as its protocol has read it; ``started``: when, by time.perf_counter."""

    session_id: str
    request: schemas.Act | schemas.Transition
    deadline: Deadline | None
    started: float

    def prepare(self, answer: schemas.Action) -> None:
        """Write the reply, without sending it."""
        ...

    def send(self) -> None:
        """Send it."""
        ...

    def go_around(self) -> None:
        """Give the call to the application."""
        ...


class Lane:
    """Answers calls of one process; part of the event loop's thread."""

    def __init__(self, app: FastAPI, parts: Parts) -> None:
        self._app, self.parts = app, parts
        self._batches, self._metrics = Batches(parts.loop), parts.metrics
        self._waiting: list[Call] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def open(self) -> bool:
        """Whether there is room for one more call: `service.gate` refuses the others."""
        state = self._app.state
        return not state.stopping and state.in_flight() - self.parts.waiting.count < self.parts.settings.max_in_flight

    def add(self, call: Call) -> None:
        """Answer a call with all others of this turn."""
        self._waiting.append(call)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        calls, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        begun: list[Begun | None] = [None] * len(calls)
        try:
            begun = self._save(calls)
        except RedisError:
            pass  # the long way tells of it
        except Exception:
            _log.exception("calls had to go the long way")
        for call, each in zip(calls, begun, strict=True):
            if each is None:
                call.go_around()
            else:
                call.send()
        # Replies leave at the end of this turn, so counting does not hold them up.
        asyncio.get_running_loop().call_soon(self._count, calls, begun, time.perf_counter())

    def _save(self, calls: Sequence[Call]) -> list[Begun | None]:
        """Conclude and save what can be; None for calls that have to go the long way."""
        begun = self._batches.begin([(call.session_id, call.request) for call in calls])
        for index, call in enumerate(calls):
            if call.deadline is not None and call.deadline.passed:
                begun[index] = None
        wait = self._batches.save(begun)
        for call, each in zip(calls, begun, strict=True):
            if each is not None and each.answer is not None:
                call.prepare(each.answer)
        return [each if done else None for each, done in zip(begun, wait(), strict=True)]

    def _count(self, calls: Sequence[Call], begun: Sequence[Begun | None], now: float) -> None:
        self._batches.count([each for each in begun if each is not None])
        for call, each in zip(calls, begun, strict=True):
            if each is not None:
                seconds = self._metrics.act_seconds if isinstance(call.request, schemas.Act) else self._metrics.step_seconds
                seconds.observe(now - call.started)
