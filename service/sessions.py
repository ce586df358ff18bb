"""Sessions in Redis: loaded in one round trip, saved in one, both or nothing.

Several API processes may serve the same session: a save goes through only if the session is still as it was loaded.
"""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import numpy as np
from redis import Redis

from service.errors import InvalidRequest, UnknownSession
from service.keys import KNOWN_EXTRA_MS, SESSIONS, WRITABLE, SessionKeys, owned
from service.redis_script import RedisScript
from service.session_errors import SessionClosed, SessionExpired
from service.session_log import KEPT_SAVES, pack
from service.session_state import Changes, EpisodeRecord, Loaded, Posterior, Session, task_prior
from training.contract.context import Floats, pack_rows, unpack_rows

_ID = re.compile("[0-9a-f]{32}")
_REMEMBERED_SESSIONS = 16_384  # about half a kilobyte each; while exploring by novelty some kilobytes
_SaveCall = tuple[Sequence[str], list[int | bytes]]
_REFRESH_SHARE = 0.9  # the time to live is written anew once a tenth of it has passed, not with every step


# Most saves are those of a control step within a skill: body and log, two keys. Everything else comes after.
_SAVE = f"""
local now = redis.call('HMGET', KEYS[1], 'body', 'current')
if now[1] ~= ARGV[1] or now[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'body', ARGV[3])
if ARGV[4] ~= '' then
  local length = redis.call('RPUSH', KEYS[2], ARGV[4])
  if length == 1 then redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1])) end
  if length > {KEPT_SAVES * 11 // 10} then redis.call('LTRIM', KEYS[2], -{KEPT_SAVES}, -1) end
end
if #KEYS == 2 then return 1 end
if ARGV[5] ~= '' then redis.call('APPEND', KEYS[3], ARGV[5]) end
if ARGV[6] ~= '' then redis.call('RPUSH', KEYS[4], ARGV[6]) end
if ARGV[7] ~= '' then
  for i = 1, #KEYS - 1 do redis.call('PEXPIRE', KEYS[i], ARGV[7]) end
  redis.call('PEXPIRE', KEYS[#KEYS], ARGV[8])
elseif ARGV[5] ~= '' or ARGV[6] ~= '' then
  local left = redis.call('PTTL', KEYS[1])
  redis.call('PEXPIRE', KEYS[3], left)
  redis.call('PEXPIRE', KEYS[4], left)
end
for i = 9, #ARGV, 2 do redis.call('SETRANGE', KEYS[3], ARGV[i], ARGV[i + 1]) end
return 1
"""

_SAVE_TASK = """
local left = redis.call('PTTL', KEYS[2])
if left < 0 then return 0 end
local there = redis.call('HMGET', KEYS[1], 'version', 'revision')
local version, revision = tonumber(there[1] or '0'), tonumber(there[2] or '0')
if version > tonumber(ARGV[1]) or revision > tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'mean', ARGV[2], 'scale', ARGV[3], 'revision', ARGV[4])
redis.call('PEXPIRE', KEYS[1], left)
return 1
"""


class SessionStore:
    """Sessions in Redis. Every method is one round trip unless it says otherwise; redis.RedisError goes up as it is."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis
        self._save = RedisScript(redis, _SAVE)
        self._save_task = redis.register_script(_SAVE_TASK)
        self._write_nothing = redis.register_script("redis.call('SET', KEYS[1], '') redis.call('DEL', KEYS[1])")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Session)
        self._saved: dict[str, tuple[bytes, int]] = {}  # by session id, oldest first: bytes and current version as last saved here

    def check_writable(self) -> None:
        """Whether Redis would take what a session brings: a full disk or memory, and a replica, answer a ping."""
        self._write_nothing(keys=[WRITABLE])

    def create(self, session: Session) -> tuple[Loaded, bool]:
        """Store a new session; one of this id that is there already stays as it is. Also says whether it was new."""
        keys, raw = SessionKeys(session.session_id), self._encoder.encode(session)
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(keys.session, "body", cast(str, raw))
            pipe.hsetnx(keys.session, "current", "0")
            pipe.pexpire(keys.session, _ms(session.ttl_s))  # from now on by Redis's clock, whatever this machine's says
            pipe.set(keys.known, "open", px=_ms(session.ttl_s) + KNOWN_EXTRA_MS)
            pipe.zadd(SESSIONS, {session.session_id: 0})
            pipe.zadd(owned(owner_of(session.session_id)), {session.session_id: 0})
            new = bool(pipe.execute()[0])
        return Loaded(session, keys, raw, 0), new

    def load(self, session_id: str) -> Loaded:
        """Read a session. Raises UnknownSession, SessionClosed or SessionExpired."""
        if not _ID.fullmatch(session_id):
            raise unknown_session(session_id)
        keys = SessionKeys(session_id)
        raw, current = cast(list[bytes | None], self.redis.hmget(keys.session, ["body", "current"]))
        if raw is None:
            raise self._why_missing(keys)
        return Loaded(self._decoder.decode(raw), keys, raw, int(current or 0))

    def recall(self, session_id: str) -> Loaded:
        """The session as this process last saved it, without a round trip; read from Redis when it is not remembered.

        In a control loop it is nearly always still that. `save` finds out, and refuses it when it is not.
        """
        remembered = self._saved.pop(session_id, None)
        if remembered is None:
            return self.load(session_id)
        raw, current = remembered
        return Loaded(self._decoder.decode(raw), SessionKeys(session_id), raw, current, recalled=True)

    def recall_many(self, session_ids: Sequence[str]) -> list[Loaded | None]:
        """`recall` of several different sessions, in at most one round trip; None for those that are not there."""
        unknown = [session_id for session_id in session_ids if session_id not in self._saved and _ID.fullmatch(session_id)]
        read = dict(zip(unknown, self._load_many(unknown), strict=True)) if unknown else {}
        return [self.recall(session_id) if session_id in self._saved else read.get(session_id) for session_id in session_ids]

    def save(self, loaded: Loaded, changes: Changes) -> bool:
        """Save the session with its changes.

        False when it is not as it was loaded any more (changed, given another policy version, closed), or when it was recalled and
        there is nothing to save, so that nobody has looked: load it and conclude again.
        """
        return self.send_saves([(loaded, changes)])()[0]

    def send_saves(self, saves: Sequence[tuple[Loaded, Changes]]) -> Callable[[], list[bool]]:
        """Begin to `save` several different sessions, in one round trip. What it returns waits for the end, and is to be called."""
        calls = [self._call(loaded, changes) for loaded, changes in saves]
        wait = self._save.send([call for call in calls if call is not None])

        def finish() -> list[bool]:
            answers, done = iter(wait()), []
            for (loaded, _), call in zip(saves, calls, strict=True):
                if call is None:
                    done.append(not loaded.recalled)
                    continue
                done.append(bool(next(answers)))
                if done[-1]:
                    self._saved_as(loaded, call)
            return done

        return finish

    def _call(self, loaded: Loaded, changes: Changes) -> "_SaveCall | None":
        """Keys and arguments of the script that saves a session; None when nothing is to be saved."""
        session, now = loaded.session, time.time()
        lives = known_lives = b""
        left_s = session.expires_at - now
        if not _REFRESH_SHARE * session.ttl_s <= left_s <= session.ttl_s:  # more is left only by the clock of another machine
            session.expires_at = now + session.ttl_s
            lives, known_lives = b"%d" % _ms(session.ttl_s), b"%d" % (_ms(session.ttl_s) + KNOWN_EXTRA_MS)
        body = self._encoder.encode(session)
        if body == loaded.raw:
            return None
        keys: Sequence[str] = loaded.keys.written
        args: list[int | bytes] = [loaded.raw, loaded.current_version, body, pack(changes.events)]
        if lives or changes.rows or changes.episode is not None or changes.late_rewards:
            keys = [*loaded.keys.lasting, loaded.keys.known]
            record = msgspec.json.encode(changes.episode) if changes.episode else b""
            rows = b"".join(pack_rows(row) for row in changes.rows)
            args += [rows, record, lives, known_lives, *self._with_late_rewards(loaded.keys, changes)]
        return keys, args

    def _saved_as(self, loaded: Loaded, call: "_SaveCall") -> None:
        body = call[1][2]
        assert isinstance(body, bytes)
        loaded.raw = body
        self._remember(loaded.session.session_id, body, loaded.current_version)

    def close(self, session_id: str) -> Loaded:
        """Remove a session with everything of it. Returns it as it was."""
        loaded = self.load(session_id)
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(*loaded.keys.lasting, loaded.keys.lease)
            pipe.set(loaded.keys.known, "closed", px=KNOWN_EXTRA_MS)
            pipe.zrem(SESSIONS, session_id)
            pipe.zrem(owned(owner_of(session_id)), session_id)
            pipe.execute()
        return loaded

    def count(self, owner: str) -> tuple[int, int]:
        """How many sessions are listed in all, and of one owner; expired ones that were not reaped yet included."""
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.zcard(SESSIONS)
            pipe.zcard(owned(owner))
            in_all, own = cast(tuple[int, int], tuple(pipe.execute()))
        return in_all, own

    def page(self, limit: int, cursor: str | None, owner: str | None = None) -> tuple[list[Loaded], str | None]:
        """Up to ``limit`` sessions (of one owner), newest first, from after ``cursor``; and the next cursor. Some round trips."""
        if cursor is not None and not _ID.fullmatch(cursor):
            raise InvalidRequest("the cursor is none that this service gave", received=cursor, action="Use next_cursor of the page before.")
        index = SESSIONS if owner is None else owned(owner)
        found: list[Loaded] = []
        upper = f"({cursor}" if cursor else "+"
        while len(found) < limit:
            ids = [value.decode() for value in cast(list[bytes], self.redis.zrevrangebylex(index, upper, "-", start=0, num=limit))]
            if not ids:
                return found, None
            for session_id, loaded in zip(ids, self._load_many(ids), strict=True):  # expired ones are left to the reaper
                upper = f"({session_id}"
                if loaded is not None:
                    found.append(loaded)
                if len(found) == limit:
                    break
        return found, upper[1:] if self.redis.zlexcount(index, "-", upper) else None

    def context(self, keys: SessionKeys, first_row: int, end_row: int, width: int) -> Floats:
        """Rows ``first_row`` to ``end_row`` (exclusive) of the context: float32 [N, width]."""
        if end_row <= first_row:
            return unpack_rows(b"", width)
        data = cast(bytes, self.redis.getrange(keys.context, first_row * width * 4, end_row * width * 4 - 1))
        return unpack_rows(data, width)

    def episodes(self, keys: SessionKeys, first: int = 0) -> list[EpisodeRecord]:
        """Records of the completed episodes from index ``first`` on, in order."""
        records = cast(list[bytes], self.redis.lrange(keys.episodes, first, -1))
        return [msgspec.json.decode(record, type=EpisodeRecord) for record in records]

    def load_task(self, keys: SessionKeys, embedding_dim: int) -> Posterior:
        """The newest task posterior; before any, the task prior N(0, I)."""
        version, mean, scale, revision = cast(list[bytes | None], self.redis.hmget(keys.task, ["version", "mean", "scale", "revision"]))
        if version is None or mean is None or scale is None:
            return task_prior(embedding_dim)
        return Posterior(int(version), unpack_rows(mean, embedding_dim)[0], unpack_rows(scale, embedding_dim)[0], int(revision or 0))

    def task_version(self, keys: SessionKeys) -> int:
        """The version of the newest task posterior; 0 before any."""
        return int(cast(bytes | None, self.redis.hget(keys.task, "version")) or 0)

    def task_versions(self, keys: list[SessionKeys]) -> list[int]:
        """`task_version` of several sessions."""
        with self.redis.pipeline(transaction=False) as pipe:
            for each in keys:
                pipe.hget(each.task, "version")
            return [int(version or 0) for version in pipe.execute()]

    def save_task(self, keys: SessionKeys, posterior: Posterior) -> None:
        """Store a task posterior, unless a newer one is there or the session is gone."""
        args: list[int | bytes] = [posterior.version, pack_rows(posterior.mean), pack_rows(posterior.scale), posterior.revision]
        self._save_task(keys=[keys.task, keys.session], args=args)

    def _with_late_rewards(self, keys: SessionKeys, changes: Changes) -> list[int | bytes]:
        """Offsets and new bytes of the rewards in the stored context. Nobody else changes them: a save holds only over the same session."""
        sums: dict[int, float] = {}
        changed: list[int | bytes] = []
        for offset, reward in changes.late_rewards:
            sums[offset] = sums.get(offset, 0.0) + reward
        for offset, reward in sums.items():
            before = unpack_rows(cast(bytes, self.redis.getrange(keys.context, offset, offset + 3)), 1)
            changed += [offset, pack_rows(before + np.float32(reward))]
        return changed

    def _remember(self, session_id: str, raw: bytes, current_version: int) -> None:
        self._saved.pop(session_id, None)
        self._saved[session_id] = (raw, current_version)
        if len(self._saved) > _REMEMBERED_SESSIONS:
            del self._saved[next(iter(self._saved))]

    def _load_many(self, ids: list[str]) -> list[Loaded | None]:
        with self.redis.pipeline(transaction=False) as pipe:
            for session_id in ids:
                pipe.hmget(SessionKeys(session_id).session, ["body", "current"])
            answers = pipe.execute()
        return [
            Loaded(self._decoder.decode(raw), SessionKeys(session_id), raw, int(current or 0)) if raw else None
            for session_id, (raw, current) in zip(ids, answers, strict=True)
        ]

    def _why_missing(self, keys: SessionKeys) -> UnknownSession | SessionClosed | SessionExpired:
        known = cast(bytes | None, self.redis.get(keys.known))
        if known is None:
            return unknown_session(keys.session_id)
        if known == b"closed":
            return SessionClosed(f"session {keys.session_id} was closed", action="Open a new session.")
        return SessionExpired(
            f"session {keys.session_id} expired: it had no act or report for its time to live",
            action="Open a new session, with a longer ttl_s.",
        )


def new_session_id(owner: str) -> str:
    """32 hexadecimal digits that sort by time: 12 of milliseconds, the owner's 10, 10 random.

    Whose a session is can so be told from its id alone, before anything is read.
    """
    return f"{_ms(time.time()):012x}{owner}{secrets.token_hex(5)}"


def owner_of(session_id: str) -> str:
    """The owner that an id carries."""
    return session_id[12:22]


def _ms(time_s: float) -> int:
    return int(time_s * 1000)


def unknown_session(session_id: str) -> UnknownSession:
    """There is no session of this id, as far as the caller may know."""
    return UnknownSession(
        "no session has this id",
        expected="an id that POST /v1/sessions gave",
        received=session_id[:64],
        action="Open a session, or list them.",
    )
