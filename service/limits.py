"""How much one caller may ask for: requests a second, open sessions, and bodies under way.

Requests are counted in memory, so that a control step costs no round trip for it; each API process counts for itself.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from service.errors import TooManyRequests, TooManySessions
from service.gate import Waiting
from service.sessions import SessionStore
from service.settings import Settings

_BURST_S: Final = 2.0
_RETRY_SESSIONS_S: Final = 30.0


class _Bucket:
    """A token bucket: two seconds' worth of requests at once, but at least one, and ``per_s`` a second on average."""

    __slots__ = ("at", "full", "left", "per_s")

    def __init__(self, per_s: float, now: float) -> None:
        self.per_s, self.at = per_s, now
        self.left = self.full = max(1.0, _BURST_S * per_s)

    def take(self, now: float) -> float:
        """Take one request. Returns 0, or after how many seconds there is one."""
        self.left = min(self.full, self.left + (now - self.at) * self.per_s)
        self.at = now
        if self.left < 1.0:
            return (1.0 - self.left) / self.per_s
        self.left -= 1.0
        return 0.0


class RequestRates:
    """Requests a second: of each owner of tokens, and of all callers together. 0: no limit."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._each, self._all, self._clock = settings.requests_per_s_per_token, settings.requests_per_s, clock
        self._owners: dict[str, _Bucket] = {}  # as many as there are names of tokens
        self._together = _Bucket(self._all, clock())

    def take(self, owner: str | None) -> None:
        """Count one request of an owner's; None: of somebody who came without a token. Raises TooManyRequests."""
        if not (self._each or self._all):
            return
        now = self._clock()
        if self._each and owner is not None:
            bucket = self._owners.get(owner)
            if bucket is None:
                bucket = self._owners[owner] = _Bucket(self._each, now)
            if wait_s := bucket.take(now):
                raise _too_many("this token's name sends more requests than it may", self._each, "SKILLET_REQUESTS_PER_S_PER_TOKEN", wait_s)
        if self._all and (wait_s := self._together.take(now)):
            raise _too_many("the service gets more requests than it takes", self._all, "SKILLET_REQUESTS_PER_S", wait_s)


class SessionCap:
    """How many sessions may be open: in all, and of one owner of tokens.

    A few more may come through when several are opened at the same moment. An expired session counts until it is reaped.
    """

    def __init__(self, settings: Settings, store: SessionStore) -> None:
        self._each, self._all, self._store = settings.max_sessions_per_token, settings.max_sessions, store

    def admit(self, owner: str, *, has_token: bool) -> None:
        """Raise TooManySessions unless another session may be opened. One round trip."""
        in_all, own = self._store.count(owner)
        if has_token and own >= self._each:
            raise _too_many_sessions("this token's name", own, self._each, "SKILLET_MAX_SESSIONS_PER_TOKEN")
        if in_all >= self._all:
            raise _too_many_sessions("this service", in_all, self._all, "SKILLET_MAX_SESSIONS")


class Bodies:
    """Requests whose bodies are awaited. They are not counted as in flight, or a few that never end would keep everybody else out."""

    def __init__(self, waiting: Waiting, most: int) -> None:
        self._waiting, self._most = waiting, most
        self._owners = Counter[str]()

    @contextmanager
    def awaited(self, owner: str | None) -> Iterator[None]:
        """While a body of ``owner``'s is awaited; None: of somebody's who came without a token, where that is all the same.

        Raises TooManyRequests when as many of that owner's are awaited as may be.
        """
        if owner is None:
            with self._waiting:
                yield
            return
        if self._owners[owner] >= self._most:
            raise TooManyRequests(
                "this token's name sends more bodies at a time than it may",
                expected=f"at most {self._most} at a time in each API process",
                action="Let requests come to their end before sending more.",
                retry_after_s=1.0,
            )
        self._owners[owner] += 1
        try:
            with self._waiting:
                yield
        finally:
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]


def _too_many(detail: str, per_s: float, setting: str, wait_s: float) -> TooManyRequests:
    return TooManyRequests(
        detail,
        expected=f"at most {per_s:g} a second in each API process",
        action=f"Send it again after the seconds in Retry-After. Whoever runs the service may raise {setting}.",
        retry_after_s=wait_s,
    )


def _too_many_sessions(whose: str, found: int, limit: int, setting: str) -> TooManySessions:
    return TooManySessions(
        f"{whose} has as many open sessions as it may",
        expected=f"fewer than {limit}",
        received=found,
        action=f"Close sessions that are not needed, or let them expire. Whoever runs the service may raise {setting}.",
        retry_after_s=_RETRY_SESSIONS_S,
    )
