"""Takes expired sessions off the lists of sessions. Their data is gone by then: every key of a session expires with it.

A thread of ``python -m service``, not of an API process, so that no control step waits for it. Of several services on one Redis one at a
time does it. What it did is in Redis, for every API process's ``/metrics``.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Final, cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError

from service.keys import COUNTERS, REAPER, SESSIONS, SessionKeys, owned
from service.sessions import owner_of

_log = logging.getLogger(__name__)
_BATCH: Final = 500
_EXPIRED, _REAPED_AT = "sessions_expired", "reaped_at"


class Reaper:
    """Looks through all sessions every ``interval_s``. A context manager."""

    def __init__(self, redis: "Redis", interval_s: float) -> None:
        self._redis, self._interval_s = redis, interval_s
        self._name = secrets.token_hex(8)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def __enter__(self) -> "Reaper":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def reap(self) -> int:
        """Take every expired session off the lists, unless another service did so lately. Returns how many; redis.RedisError goes up."""
        if not self._redis.set(REAPER, self._name, nx=True, px=max(1, int(900 * self._interval_s))):
            return 0
        reaped, lower = 0, "-"
        while ids := cast(list[bytes], self._redis.zrangebylex(SESSIONS, lower, "+", start=0, num=_BATCH)):
            reaped += self._reap([session_id.decode() for session_id in ids])
            lower = f"({ids[-1].decode()}"
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(COUNTERS, _EXPIRED, reaped)
            pipe.hset(COUNTERS, _REAPED_AT, str(time.time()))
            pipe.execute()
        return reaped

    def _reap(self, ids: list[str]) -> int:
        with self._redis.pipeline(transaction=False) as pipe:
            for session_id in ids:
                pipe.exists(SessionKeys(session_id).session)
            there = pipe.execute()
        gone = [session_id for session_id, found in zip(ids, there, strict=True) if not found]
        with self._redis.pipeline(transaction=False) as pipe:
            for session_id in gone:
                pipe.zrem(SESSIONS, session_id)
                pipe.zrem(owned(owner_of(session_id)), session_id)
            return sum(pipe.execute()[::2])  # one that was closed just now is off the list already, and did not expire

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                if reaped := self.reap():
                    _log.info("%d sessions expired", reaped)
            except RedisError as error:
                _log.warning("Redis does not answer (%s); expired sessions stay listed until it does", type(error).__name__)


class ReaperMetrics(Collector):
    """How many sessions are listed and how many expired, and when that was last looked at; without values while Redis does not answer."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    def describe(self) -> Iterator[Metric]:
        """The names, without reading anything."""
        return _families(None, 0, None)

    def collect(self) -> Iterator[Metric]:
        """The values, in one round trip."""
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcard(SESSIONS)
                pipe.hmget(COUNTERS, [_EXPIRED, _REAPED_AT])
                listed, (expired, reaped_at) = cast(tuple[int, list[bytes | None]], tuple(pipe.execute()))
        except RedisError as error:
            _log.warning("metrics without those of the reaper: Redis does not answer (%s)", type(error).__name__)
            return _families(None, None, None)
        return _families(listed, int(expired or 0), None if reaped_at is None else float(reaped_at))


def _families(listed: int | None, expired: int | None, reaped_at: float | None) -> Iterator[Metric]:
    sessions = GaugeMetricFamily("skillet_sessions", "Sessions that are listed: open ones, and expired ones that were not reaped yet")
    reaped = GaugeMetricFamily("skillet_reaper_last_run_timestamp_seconds", "When expired sessions were last looked for")
    for gauge, value in ((sessions, listed), (reaped, reaped_at)):
        if value is not None:
            gauge.add_metric([], value)
        yield gauge
    counter = CounterMetricFamily("skillet_sessions_expired", "Sessions that did not act or report for their time to live")
    if expired is not None:
        counter.add_metric([], expired)
    yield counter
