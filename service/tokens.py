"""Tokens: made, listed and revoked in Redis; looked up in memory.

A token is ``skillet_ID_SECRET`` with 256 random bits in the secret. Redis keeps a SHA-256 of the whole, which is enough for a secret that
nobody can guess: slow hashes are for passwords. Revoked tokens stay listed, so that revoking the last one opens no door.
"""

import hashlib
import hmac
import re
import secrets
import time
from typing import Final, cast

import msgspec
from msgspec import Struct
from redis import Redis

from service.errors import InvalidRequest, Unauthorized, UnknownToken
from service.keys import TOKENS, TOKENS_VERSION
from service.roles import Role

NOBODY: Final = "0" * 10
"""The owner of sessions that were opened without a token."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_LIFETIME_S: Final = 100 * 365 * 86400  # as in schemas.CreateToken
_TOKEN: Final = re.compile(r"skillet_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")


class Token(Struct, frozen=True):
    """What is kept of a token. Tokens of one name own the same sessions, so that one can be replaced by another."""

    token_id: str
    name: str
    role: Role
    sha256: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    @property
    def owner(self) -> str:
        """What the ids of its sessions carry."""
        return owner_named(self.name)

    def why_invalid(self, now: float) -> str | None:
        """Why it opens nothing any more; None when it does."""
        if self.revoked_at is not None:
            return "was revoked"
        return "has expired" if self.expires_at is not None and now >= self.expires_at else None


def owner_named(name: str) -> str:
    """Ten hexadecimal digits that stand for the name of a token."""
    return hashlib.sha256(name.encode()).hexdigest()[: len(NOBODY)]


class TokenStore:
    """The tokens in Redis. redis.RedisError goes up as it is."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    def create(self, role: Role, name: str, lifetime_s: float | None = None) -> tuple[Token, str]:
        """Make a token. Returns its record, and the token itself, which is kept nowhere.

        Raises InvalidRequest for a name that cannot be used, or that stands for another role already, and for a lifetime out of range.
        """
        self._check_name(role, name)
        if lifetime_s is not None and not 0 < lifetime_s <= _MAX_LIFETIME_S:  # nor is it so with a NaN
            raise InvalidRequest(
                f"a token cannot be valid for {lifetime_s / 86400:g} days",
                expected=f"more than 0 days, at most {_MAX_LIFETIME_S // 86400}",
                received=str(lifetime_s),
                action=f"Choose more than 0 and at most {_MAX_LIFETIME_S // 86400} days, or no end at all.",
            )
        now, token_id = time.time(), secrets.token_hex(4)
        text = f"skillet_{token_id}_{secrets.token_urlsafe(32)}"
        token = Token(token_id, name, role, _digest(text), now, None if lifetime_s is None else now + lifetime_s)
        self._write(token)
        return token, text

    def revoke(self, token_id: str) -> Token:
        """Let a token open nothing any more. Raises UnknownToken."""
        token = next((token for token in self.all() if token.token_id == token_id), None)
        if token is None:
            raise UnknownToken("no token has this id", received=token_id[:40], action="List the tokens: each line begins with its id.")
        if token.revoked_at is None:
            token = msgspec.structs.replace(token, revoked_at=time.time())
            self._write(token)
        return token

    def all(self) -> list[Token]:
        """Every token that was made, the oldest first."""
        records = cast(list[bytes], self._redis.hvals(TOKENS))
        return sorted((msgspec.json.decode(record, type=Token) for record in records), key=lambda token: token.created_at)

    def version(self) -> bytes:
        """Changes with every change of a token."""
        return cast(bytes | None, self._redis.get(TOKENS_VERSION)) or b""

    def _write(self, token: Token) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(TOKENS, token.token_id, cast(str, msgspec.json.encode(token)))
            pipe.set(TOKENS_VERSION, secrets.token_hex(8))
            pipe.execute()

    def _check_name(self, role: Role, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                "the name cannot be used",
                expected="1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
                received=name[:80],
                action="Name the robot or person that the token is for.",
            )
        now = time.time()
        for other in self.all():
            taken = other.owner == owner_named(name) and (other.name != name or (other.role != role and not other.why_invalid(now)))
            if taken:
                raise InvalidRequest(
                    f"the name is taken by a token of the role {other.role}: tokens of one name own the same sessions",
                    expected="another name, or the same role",
                    received=name,
                    action=f"Choose another name, or revoke token {other.token_id} first.",
                )


class KnownTokens:
    """The tokens as an API process knows them: a look-up needs no round trip to Redis. `service.token_watch` keeps them fresh."""

    def __init__(self, store: TokenStore, *, stale_after_s: float = 5.0) -> None:
        self._store, self._stale_after_s = store, stale_after_s
        self._tokens: dict[str, Token] = {}
        self._version: bytes | None = None
        self._read_at = -stale_after_s

    def refresh(self) -> None:
        """Read what changed. redis.RedisError goes up as it is."""
        began = time.monotonic()
        version = self._store.version()
        if version != self._version:
            self._tokens = {token.token_id: token for token in self._store.all()}
            self._version = version
        self._read_at = began

    @property
    def any(self) -> bool:
        """Whether a token was ever made. Reads Redis when that was not done lately, as `find` does."""
        self._require_fresh()
        return bool(self._tokens)

    def find(self, text: str) -> Token:
        """The token whose text this is. Raises Unauthorized."""
        self._require_fresh()
        match = _TOKEN.fullmatch(text)
        token = self._tokens.get(match.group(1)) if match else None
        if token is None or not hmac.compare_digest(token.sha256, _digest(text)):
            raise Unauthorized("the token is none of this service", action=_ASK, tried=True)
        if (reason := token.why_invalid(time.time())) is not None:
            raise Unauthorized(f"the token {token.token_id} {reason}", action=_ASK, tried=True)
        return token

    def check(self, token_id: str) -> None:
        """Raise Unauthorized unless the token that was found earlier is still valid."""
        self._require_fresh()
        token = self._tokens.get(token_id)
        reason = "is none of this service any more" if token is None else token.why_invalid(time.time())
        if reason is not None:
            raise Unauthorized(f"the token {token_id} {reason}", action=_ASK, tried=True)

    def _require_fresh(self) -> None:
        if time.monotonic() - self._read_at > self._stale_after_s:
            self.refresh()


_ASK: Final = "Ask whoever runs this service for a token: python -m service tokens create."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
