"""Keeps what an API process knows of the tokens fresh, and of whether Redis hangs, beside its event loop."""

import threading
from typing import Final

from redis import Redis
from redis.exceptions import RedisError, TimeoutError

from service.storage import WatchedPool
from service.tokens import KnownTokens

INTERVAL_S: Final = 0.5
"""Between two looks: so long, and the moment of a round trip, may a revoked token go on working."""


class TokenWatch:
    """A thread that looks for changed tokens.

    It asks Redis by a client of its own first. While that gets no answer in time, ``pool`` refuses its callers at once; other failures
    they find out by themselves, and as soon.
    """

    def __init__(self, tokens: KnownTokens, redis: "Redis", pool: WatchedPool, interval_s: float = INTERVAL_S) -> None:
        self._tokens, self._redis, self._pool, self._interval_s = tokens, redis, pool, interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tokens", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait until it has."""
        self._stopping.set()
        self._thread.join()
        self._redis.close()

    def _watch(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self._redis.ping()
                self._pool.hangs = False
                self._tokens.refresh()
            except TimeoutError:
                self._pool.hangs = True
            except RedisError:
                self._pool.hangs = False
