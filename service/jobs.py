"""Jobs for learners: a Redis stream with a consumer group, JSON inside.

A job says "this session has episodes to learn from", no more; doing it twice changes nothing. A job that its learner neither finished nor
showed life for goes to another one.
"""

import uuid
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import msgspec
from redis import Redis
from redis.exceptions import ResponseError

from service.keys import JOBS, LEARNERS, SessionKeys

STALE_JOB_S = 60
"""A waiting job is queued again after this long, in case it was noted but never written to the stream; a second one changes nothing."""

_LEARNER_ALIVE_MS = 30_000

MAX_ATTEMPTS = 5
"""Work on a session that was begun this often without getting any further kills its learners, and is given up."""


class Job(msgspec.Struct, frozen=True):
    """What is in the stream: the session, and the token by which it knows that this job waits."""

    session_id: str
    token: str


@dataclass(frozen=True)
class Claim:
    """A job that this learner has taken, by its id in the stream."""

    message_id: str
    session_id: str
    token: str


@dataclass(frozen=True)
class Backlog:
    """What waits for learners: sessions, how long the first of them has, sessions at work, learners that live."""

    waiting: int
    oldest_wait_s: float
    in_work: int
    learners: int


_ACQUIRE = """
if redis.call('PTTL', KEYS[2]) < 0 then return -1 end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local before = redis.call('HGET', KEYS[3], 'holder')
redis.call('HSET', KEYS[3], 'holder', ARGV[1])
redis.call('PEXPIRE', KEYS[3], redis.call('PTTL', KEYS[2]))
return before == ARGV[1] and 2 or 1
"""

_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
redis.call('DEL', KEYS[1])
redis.call('HDEL', KEYS[2], 'attempts', 'attempted_by')
"""

_RESERVE = """
local waiting = redis.call('HGET', KEYS[1], 'queued')
local now_s = tonumber(redis.call('TIME')[1])
if waiting and now_s - tonumber(redis.call('HGET', KEYS[1], 'queued_at_s') or '0') < tonumber(ARGV[2]) then return waiting end
redis.call('HSET', KEYS[1], 'queued', ARGV[1], 'queued_at_s', now_s, 'state', 'queued', 'error', '')
redis.call('PEXPIRE', KEYS[1], math.max(1, redis.call('PTTL', KEYS[2])))
return ARGV[1]
"""

# A learner that begins again, because Redis was gone for a while, has not died.
_BEGIN = """
if redis.call('HGET', KEYS[1], 'attempted_by') == ARGV[1] then return end
redis.call('HSET', KEYS[1], 'attempted_by', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
"""

_CLAIMED = """
if redis.call('HGET', KEYS[1], 'queued') == ARGV[1] then redis.call('HDEL', KEYS[1], 'queued') end
"""


class Lease(IntEnum):
    """What asking for a session's lease gave."""

    SESSION_GONE = -1
    HELD_BY_ANOTHER = 0
    TAKEN = 1
    TAKEN_AGAIN = 2  # and no other learner had it since


class JobQueue:
    """The stream of jobs, and the leases that keep two learners off one session. redis.RedisError goes up as it is."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis
        self._reserve = redis.register_script(_RESERVE)
        self._acquire = redis.register_script(_ACQUIRE)
        self._release = redis.register_script(_RELEASE)
        self._claimed = redis.register_script(_CLAIMED)
        self._begin = redis.register_script(_BEGIN)

    def enqueue(self, keys: SessionKeys, *, surely: bool = False) -> str:
        """Queue the session; if it waits already, that is the same job. Returns the job's token. ``surely``: write the job in any case.

        The session learns that a job waits *before* the job can be taken: the other way round, a learner that is faster than this process
        clears the note before it is written, and the session would wait for ever. The two keys lie in different slots of a cluster, so one
        script cannot write both; a note whose job was never written (this process died in between) lapses.
        """
        token = uuid.uuid4().hex
        reserved = cast(bytes, self._reserve(keys=[keys.finetuning, keys.session], args=[token, STALE_JOB_S])).decode()
        if surely or reserved == token:
            self.redis.xadd(JOBS, {"job": msgspec.json.encode(Job(keys.session_id, reserved))})
        return reserved

    def open(self) -> None:
        """Make the stream and its group, if they are not there."""
        try:
            self.redis.xgroup_create(JOBS, LEARNERS, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def take(self, learner: str, block_ms: int | None) -> Claim | None:
        """The next new job, waiting up to ``block_ms`` for one (None: not at all)."""
        answer = cast(Any, self.redis.xreadgroup(LEARNERS, learner, {JOBS: ">"}, count=1, block=block_ms))
        return _claims(answer[0][1])[0] if answer else None

    def reclaim(self, learner: str, min_idle_ms: int) -> list[Claim]:
        """Jobs of learners that showed no life for ``min_idle_ms``."""
        answer = cast(Any, self.redis.xautoclaim(JOBS, LEARNERS, learner, min_idle_ms, count=16))
        return _claims(answer[1])

    def own(self, learner: str) -> list[Claim]:
        """Jobs that a learner of this name took earlier and did not finish."""
        answer = cast(Any, self.redis.xreadgroup(LEARNERS, learner, {JOBS: "0"}))
        return _claims(answer[0][1]) if answer else []

    def keep(self, learner: str, message_ids: list[str]) -> None:
        """Show life for jobs at work."""
        if message_ids:
            self.redis.xclaim(JOBS, LEARNERS, learner, 0, cast(Any, message_ids), justid=True)

    def started(self, keys: SessionKeys, token: str) -> None:
        """The job is at work: episodes that complete from now on need a new one."""
        self._claimed(keys=[keys.finetuning], args=[token])

    def begin(self, keys: SessionKeys, process: str) -> None:
        """Count that a learner process, by a name that no other ever has, begins to work on the session; with its lease held."""
        self._begin(keys=[keys.finetuning], args=[process])

    def attempts(self, keys: SessionKeys) -> int:
        """How many processes, one after the other, began to work on the session since it last got further or ended."""
        return int(cast(Any, self.redis.hget(keys.finetuning, "attempts")) or 0)

    def acquire(self, keys: SessionKeys, learner: str, lease_ms: int) -> Lease:
        """Take or prolong the lease of a session."""
        return Lease(int(self._acquire(keys=[keys.lease, keys.session, keys.finetuning], args=[learner, lease_ms])))

    def release(self, keys: SessionKeys, learner: str) -> None:
        """Give the lease back, the work being at an end."""
        self._release(keys=[keys.lease, keys.finetuning], args=[learner])

    def backlog(self) -> Backlog:
        """What waits for learners at the moment."""
        now_s, micros = self.redis.time()
        try:
            (group,) = self.redis.xinfo_groups(JOBS)
            consumers = self.redis.xinfo_consumers(JOBS, LEARNERS)
        except (ResponseError, ValueError):  # no learner was here yet
            group, consumers = {"pending": 0, "last-delivered-id": b"0-0"}, []
        after = cast(bytes, group["last-delivered-id"]).decode()
        first = cast(list[Any], self.redis.xrange(JOBS, min=f"({after}", count=1))
        queued_ms = int(first[0][0].partition(b"-")[0]) if first else now_s * 1000
        return Backlog(
            waiting=max(0, self.redis.xlen(JOBS) - int(group["pending"])),
            oldest_wait_s=max(0.0, now_s + micros / 1e6 - queued_ms / 1000) if first else 0.0,
            in_work=int(group["pending"]),
            learners=sum(consumer["idle"] < _LEARNER_ALIVE_MS for consumer in consumers),
        )

    def finish(self, message_id: str) -> None:
        """Take a job off the stream."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.xack(JOBS, LEARNERS, message_id)
            pipe.xdel(JOBS, message_id)
            pipe.execute()


def _claims(entries: list[Any]) -> list[Claim]:
    claims = []
    for message_id, fields in entries:
        if fields:  # one that was deleted while it was pending has none
            job = msgspec.json.decode(fields[b"job"], type=Job)
            claims.append(Claim(message_id.decode(), job.session_id, job.token))
    return claims
