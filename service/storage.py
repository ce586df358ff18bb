"""The connection to Redis."""

import re
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from service.errors import StorageUnavailable

_PASSING = re.compile(r"(?:^|[\s:-])(MISCONF|OOM|READONLY|BUSY|UNKILLABLE|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|LOADING|TRYAGAIN)\b")
"""Codes of what passes: not always in front, as what a script or a pipeline was refused for is quoted in the message."""


class WatchedPool(ConnectionPool):
    """Gives no connection while Redis is known to hang (`service.token_watch`): callers would wait for it, one after the other."""

    hangs = False

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """A connection. Raises redis.ConnectionError."""
        self.check()
        return super().get_connection(*args, **options)

    def check(self) -> None:
        """Raise redis.ConnectionError while Redis is known to hang."""
        if self.hangs:
            raise ConnectionError("Redis hangs: it has not answered for a while")


def connect(url: str, timeout_s: float) -> "Redis":
    """A client that answers or fails within ``timeout_s``, and reconnects once when a connection turns out to be dead.

    A command may so be sent twice; every write of the service is a compare-and-set or the same when done again. One that Redis does not
    answer in time is not sent again: whoever waits for it holds up an event loop.
    """
    retry = Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))
    pool = WatchedPool.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry, protocol=2)
    return Redis.from_pool(pool)


def pool_of(redis: "Redis") -> WatchedPool:
    """The connections of a client that `connect` made."""
    pool = redis.connection_pool
    assert isinstance(pool, WatchedPool)
    return pool


def is_outage(error: RedisError) -> bool:
    """Whether Redis cannot serve at the moment, as opposed to refusing a command that it should never have been sent."""
    return not isinstance(error, ResponseError) or _code(error) is not None


def unavailable(error: RedisError) -> StorageUnavailable:
    """The problem that a client sees when Redis fails."""
    code = _code(error) if isinstance(error, ResponseError) else None
    return StorageUnavailable(
        f"Redis does not answer: {type(error).__name__}" if code is None else f"Redis takes nothing at the moment: {code}",
        expected="a reachable Redis that takes writes",
        action="Send the same request again in a moment; it has one effect. If this goes on, see to the Redis that /readyz names.",
    )


def _code(error: ResponseError) -> str | None:
    if isinstance(error, OutOfMemoryError):  # whose message has lost it
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    found = _PASSING.search(str(error))
    return found.group(1) if found else None
