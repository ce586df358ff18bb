"""A Lua script on a connection of its own: what redis-py's client does around a command costs more than a round trip to a Redis beside it.

The connection is redis-py's: address, password, TLS and timeouts are its own.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import hiredis
from redis import Redis
from redis.exceptions import ConnectionError, NoScriptError, RedisError, ResponseError

from service.storage import pool_of

_ATTEMPTS: Final = 2  # as `storage.connect`: once more when a connection turns out to be dead
ScriptCall = tuple[Sequence[str], Sequence[bytes | int]]
"""Keys and arguments."""


class RedisScript:
    """A script that one thread calls. A call may reach Redis twice, so the script has to be the same when done again."""

    def __init__(self, redis: "Redis", script: str) -> None:
        self._redis, self._script = redis, script
        self._sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._connection: Any = None
        self._unanswered = False

    def __call__(self, keys: Sequence[str], args: Sequence[bytes | int]) -> Any:
        """Run it. Raises redis.RedisError."""
        return self.many([(keys, args)])[0]

    def many(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run it for each of ``calls``, all sent before any is answered. Raises redis.RedisError."""
        return self.send(calls)()

    def send(self, calls: Sequence[ScriptCall]) -> Callable[[], list[Any]]:
        """As `many`, but comes back as soon as all is sent. What it returns waits for the answers, and has to be called next.

        Nothing is raised here: a connection that was dead is found out, and made again, by whoever waits.
        """
        if not calls:
            return list
        if self._unanswered and self._connection is not None:
            self._connection.disconnect()  # nobody waited for the last answers: they must not be taken for those of these calls
        self._unanswered = True
        commands: list[Any] = [("EVALSHA", self._sha, len(keys), *keys, *args) for keys, args in calls]
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        try:
            self._transmit(packed)
        except RedisError as error:
            return partial(self._again, error, packed, len(calls))
        return lambda: self._answers(packed, len(calls), sent=True)

    def _again(self, error: RedisError, packed: bytes, count: int) -> list[Any]:
        if not isinstance(error, ConnectionError):
            raise error
        return self._answers(packed, count, sent=False)

    def _answers(self, packed: bytes, count: int, *, sent: bool) -> list[Any]:
        answers = self._read(packed, count, sent=sent)
        self._unanswered = False
        if any(isinstance(answer, NoScriptError) for answer in answers):  # another Redis, or the same after a restart
            self._redis.script_load(self._script)
            answers = self._read(packed, count, sent=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _read(self, packed: bytes, count: int, *, sent: bool) -> list[Any]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if not sent or attempt > 1:
                    self._transmit(packed)
                return [self._answer() for _ in range(count)]
            except ConnectionError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _transmit(self, packed: bytes) -> None:
        pool_of(self._redis).check()
        if self._connection is None:
            self._connection = self._redis.connection_pool.get_connection()
        self._connection.send_packed_command([packed], check_health=False)  # connects if need be

    def _answer(self) -> Any:
        """One of several answers; an error that Redis sent in its place, so that those behind it are read too."""
        try:
            return self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error
