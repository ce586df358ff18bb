"""The connection to Redis."""

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from service.errors import StorageUnavailable

_PASSING = (OutOfMemoryError, ReadOnlyError)


def connect(url: str, timeout_s: float) -> "Redis":
    """A client that answers or fails within ``timeout_s``, and reconnects once when a connection turns out to be dead.

    A command may so be sent twice; every write of the service is a compare-and-set or the same when done again.
    """
    retry = Retry(NoBackoff(), 1)
    client: Redis = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry, protocol=2)
    return client


def is_outage(error: RedisError) -> bool:
    """Whether Redis cannot serve at the moment, as opposed to refusing a command that it should never have been sent."""
    return not isinstance(error, ResponseError) or isinstance(error, _PASSING) or str(error).startswith(("MISCONF", "UNKILLABLE", "BUSY"))


def unavailable(error: RedisError) -> StorageUnavailable:
    """The problem that a client sees when Redis fails."""
    return StorageUnavailable(
        f"Redis does not answer: {type(error).__name__}",
        expected="a reachable Redis",
        action="Send the same request again in a moment; it has one effect. If this goes on, see to the Redis that /readyz names.",
    )
