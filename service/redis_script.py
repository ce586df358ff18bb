"""A Lua script on a connection of its own: what redis-py's client does around a command costs more than a round trip to a Redis beside it.

The connection is redis-py's: address, password, TLS and timeouts are its own.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import hiredis
from redis import Redis
from redis.exceptions import ConnectionError, NoScriptError, ResponseError, TimeoutError

_ATTEMPTS: Final = 2  # as `storage.connect`: once more when a connection turns out to be dead


class RedisScript:
    """A script that one thread calls. A call may reach Redis twice, so the script has to be the same when done again."""

    def __init__(self, redis: "Redis", script: str) -> None:
        self._redis, self._script = redis, script
        self._sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._connection: Any = None

    def __call__(self, keys: Sequence[str], args: Sequence[bytes | int]) -> Any:
        """Run it. Raises redis.RedisError."""
        command: Any = ("EVALSHA", self._sha, len(keys), *keys, *args)
        packed = [hiredis.pack_command(command)]
        try:
            return self._ask(packed)
        except NoScriptError:  # another Redis, or the same after a restart
            self._redis.script_load(self._script)
            return self._ask(packed)

    def many(self, calls: Sequence[tuple[Sequence[str], Sequence[bytes | int]]]) -> list[Any]:
        """Run it for each (keys, args), all sent before any is answered. Raises redis.RedisError."""
        commands: list[Any] = [("EVALSHA", self._sha, len(keys), *keys, *args) for keys, args in calls]
        packed = [b"".join(hiredis.pack_command(command) for command in commands)]
        answers: list[Any] = self._ask(packed, len(commands))
        if any(isinstance(answer, NoScriptError) for answer in answers):
            self._redis.script_load(self._script)
            answers = self._ask(packed, len(commands))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _ask(self, packed: list[bytes], answers: int | None = None) -> Any:
        if self._connection is None:
            self._connection = self._redis.connection_pool.get_connection()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._connection.send_packed_command(packed, check_health=False)  # connects if need be
                if answers is None:
                    return self._connection.read_response(disable_decoding=True)
                return [self._answer() for _ in range(answers)]
            except (ConnectionError, TimeoutError):
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _answer(self) -> Any:
        """One of several answers; an error that Redis sent in its place, so that those behind it are read too."""
        try:
            return self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error
