"""Deadlines: work that comes too late is refused rather than answered stale.

A client states how long an answer is of use to it (``Skillet-Deadline-Ms``, usually its control period) and when it sent the request by its
own clock (``Skillet-Sent-Ms``, any zero). The two clocks need not agree: what the quickest of a session's requests took in the last minute
counts as no delay, so the rest of a request's way is known whatever the network or a queue did to it. A client whose clock began anew (a
robot that was switched on again, another computer that attached) is known by two requests that agree with each other and with no delay that
could be.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request
from starlette.types import Scope

from service.errors import InvalidRequest
from service.framing import headers
from service.session_errors import DeadlinePassed

_WINDOW_MS: Final = 30_000.0  # clocks drift apart by some milliseconds a minute: what was quickest is forgotten after two windows
_ANOTHER_CLOCK_MS: Final = 60_000.0  # no request that is on its way for so long is answered: whoever sent it has given up
_AGREE_MS: Final = 50.0
_REMEMBERED: Final = 4096
_DEADLINE: Final = "skillet.deadline"
_BUDGET: Final = b"skillet-deadline-ms"
_SENT: Final = b"skillet-sent-ms"


@dataclass(frozen=True)
class Deadline:
    """When an answer is of no use any more, by this process's clock in milliseconds."""

    at_ms: float
    budget_ms: float
    clock_ms: Callable[[], float]

    @property
    def passed(self) -> bool:
        """Whether it has passed."""
        return self.clock_ms() > self.at_ms

    def check(self) -> None:
        """Raise DeadlinePassed when it has passed."""
        late_ms = self.clock_ms() - self.at_ms
        if late_ms > 0:
            raise DeadlinePassed(
                f"the answer would be {late_ms:.1f} ms late",
                expected=f"within {self.budget_ms:g} ms of sending",
                received=f"{self.budget_ms + late_ms:.1f} ms",
                action="Nothing was changed. Report the outcome with transitions, then ask for an action with a fresh observation.",
            )


@dataclass
class _Quickest:
    """The smallest difference between this process's clock and a client's, in this window and the one before."""

    began_ms: float
    now_ms: float
    before_ms: float = math.inf
    odd_ms: float = math.nan
    """The difference of the request before, if no delay explained it."""


class Deadlines:
    """Reads the deadlines of requests."""

    def __init__(self, clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000) -> None:
        self.clock_ms = clock_ms
        self._quickest: OrderedDict[str, _Quickest] = OrderedDict()

    def read(self, request: Request, session_id: str, arrived_ms: float | None = None) -> Deadline | None:
        """The deadline of a request that came at ``arrived_ms`` (None: now) and is undamaged; None when it states none.

        Raises InvalidRequest for headers that are no numbers.
        """
        return self.given(request.scope, session_id, arrived_ms)

    def given(self, scope: Scope, session_id: str, arrived_ms: float | None = None) -> Deadline | None:
        """`read`, of a request's scope."""
        found = headers(scope)
        budget = found.get(_BUDGET)
        if budget is None:
            return None
        sent = found.get(_SENT)
        sent_ms = None if sent is None else _number(sent, "Skillet-Sent-Ms", signed=True)
        return self.of(scope, session_id, _number(budget, "Skillet-Deadline-Ms"), sent_ms, arrived_ms)

    def of(
        self, noted: MutableMapping[str, Any], session_id: str, budget_ms: float, sent_ms: float | None, arrived_ms: float | None = None
    ) -> Deadline:
        """The deadline of a request that came at ``arrived_ms`` (None: now), has ``budget_ms`` from when it was sent, at ``sent_ms``.

        It is kept in ``noted``, and taken from there where the same request is read again: counted twice, it would agree with itself.
        """
        deadline: Deadline | None = noted.get(_DEADLINE)
        if deadline is None:
            arrived_ms = self.clock_ms() if arrived_ms is None else arrived_ms
            way_ms = 0.0 if sent_ms is None else self._delay_ms(session_id, arrived_ms, sent_ms)
            deadline = noted[_DEADLINE] = Deadline(arrived_ms - way_ms + budget_ms, budget_ms, self.clock_ms)
        return deadline

    def _delay_ms(self, session_id: str, arrived_ms: float, sent_ms: float) -> float:
        difference = arrived_ms - sent_ms
        known = self._quickest.setdefault(session_id, _Quickest(arrived_ms, difference))
        self._quickest.move_to_end(session_id)
        if len(self._quickest) > _REMEMBERED:
            self._quickest.popitem(last=False)
        if arrived_ms - known.began_ms > 2 * _WINDOW_MS:
            known.before_ms, known.now_ms, known.began_ms = math.inf, difference, arrived_ms
        elif arrived_ms - known.began_ms > _WINDOW_MS:
            known.began_ms, known.before_ms, known.now_ms = arrived_ms, known.now_ms, difference
        delay_ms = difference - min(known.now_ms, known.before_ms, difference)
        if delay_ms <= _ANOTHER_CLOCK_MS:
            known.odd_ms, known.now_ms = math.nan, min(known.now_ms, difference)
            return delay_ms
        if abs(difference - known.odd_ms) > _AGREE_MS or math.isnan(known.odd_ms):
            known.odd_ms = difference
            return delay_ms
        known.before_ms, known.now_ms, known.odd_ms = math.inf, difference, math.nan
        return 0.0


def _number(text: bytes, name: str, *, signed: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (value <= 0 and not signed):
        raise InvalidRequest(
            f"the header {name} cannot be read",
            expected="a number of milliseconds",
            received=text[:40].decode("latin-1"),
            action=f"Correct {name}.",
        )
    return value
