"""``Idempotency-Key``: a creation call that is sent again with the same key creates nothing new and gets the same thing."""

import hashlib
import re
from typing import Final, cast

from fastapi import Request
from redis import Redis

from service.errors import IdempotencyKeyReused, InvalidRequest
from service.keys import creation
from service.sessions import owner_of

KEPT_MS: Final = 24 * 3600 * 1000
"""How long a key is remembered."""

_KEY = re.compile(r"[\x21-\x7e]{1,200}")


def key_of(request: Request) -> str | None:
    """The request's key, if it has one. Raises InvalidRequest for one that cannot be kept."""
    return check_key(request.headers.get("idempotency-key"), "the header Idempotency-Key")


def check_key(key: str | None, what: str) -> str | None:
    """The key as it came. Raises InvalidRequest, naming ``what``, for one that cannot be kept."""
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"{what} cannot be used",
            expected="1 to 200 visible ASCII characters",
            received=repr(key[:64]),
            action="Send a fresh random key, such as a UUID, with each new thing, and the same key with each repetition.",
        )
    return key


class CreatedSessions:
    """Which session a key stands for."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    def claim(self, key: str, body: bytes, session_id: str) -> str:
        """The session that ``key`` stands for: ``session_id`` when the key is new. Another owner's keys are others.

        Written before the session itself, so that a process that dies in between leaves no session that nobody knows. Raises
        IdempotencyKeyReused when the key came with another body.
        """
        name = creation(hashlib.sha256(f"{owner_of(session_id)} {key}".encode()).hexdigest())
        mine = f"{hashlib.sha256(body).hexdigest()} {session_id}".encode()
        stored = mine if self._redis.set(name, mine, nx=True, px=KEPT_MS) else cast(bytes | None, self._redis.get(name)) or mine
        digest, _, known_id = stored.decode().partition(" ")
        if digest != hashlib.sha256(body).hexdigest():
            raise IdempotencyKeyReused(
                "this Idempotency-Key came with another body before",
                expected="the same body as before, or a fresh key",
                received=key[:64],
                action="Use a fresh key for each new session.",
            )
        return known_id
