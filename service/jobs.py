"""Jobs for learners: a Redis stream with a consumer group, JSON inside.

A job says "this session has episodes to learn from", no more; doing it twice changes nothing. A job that its learner neither finished nor
showed life for goes to another one.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import msgspec
from redis import Redis
from redis.exceptions import ResponseError

from service.keys import JOBS, LEARNERS, SessionKeys

MAX_DELIVERIES = 5
"""A job that was taken up this often without being finished kills its learners, and is given up."""


class Job(msgspec.Struct, frozen=True):
    """What is in the stream."""

    session_id: str


@dataclass(frozen=True)
class Claim:
    """A job that this learner has taken, by its id in the stream, and how often it was delivered."""

    message_id: str
    session_id: str
    deliveries: int


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
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
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
        self._acquire = redis.register_script(_ACQUIRE)
        self._release = redis.register_script(_RELEASE)
        self._claimed = redis.register_script(_CLAIMED)

    def enqueue(self, keys: SessionKeys) -> str:
        """Queue the session; if it waits already, that is the same job. Returns the job's id."""
        waiting = cast(bytes | None, self.redis.hget(keys.finetuning, "queued"))
        if waiting:
            return waiting.decode()
        body = msgspec.json.encode(Job(keys.session_id))
        message_id = cast(bytes, self.redis.xadd(JOBS, {"job": body})).decode()
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.finetuning, mapping={"queued": message_id, "state": "queued", "error": ""})
            pipe.pttl(keys.session)
            left = max(1, int(pipe.execute()[-1]))
        self.redis.pexpire(keys.finetuning, left)
        return message_id

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
        return _claims(answer[0][1] if answer else [], {})[0] if answer else None

    def reclaim(self, learner: str, min_idle_ms: int) -> list[Claim]:
        """Jobs of learners that showed no life for ``min_idle_ms``."""
        answer = cast(Any, self.redis.xautoclaim(JOBS, LEARNERS, learner, min_idle_ms, count=16))
        entries = [entry for entry in answer[1] if entry[1]]
        if not entries:
            return []
        return _claims(entries, self._deliveries(learner))

    def own(self, learner: str) -> list[Claim]:
        """Jobs that a learner of this name took earlier and did not finish."""
        answer = cast(Any, self.redis.xreadgroup(LEARNERS, learner, {JOBS: "0"}))
        entries = [entry for entry in answer[0][1] if entry[1]] if answer else []
        return _claims(entries, self._deliveries(learner))

    def keep(self, learner: str, message_ids: list[str]) -> None:
        """Show life for jobs at work."""
        if message_ids:
            self.redis.xclaim(JOBS, LEARNERS, learner, 0, cast(Any, message_ids), justid=True)

    def started(self, keys: SessionKeys, message_id: str) -> None:
        """The job is at work: episodes that complete from now on need a new one."""
        self._claimed(keys=[keys.finetuning], args=[message_id])

    def acquire(self, keys: SessionKeys, learner: str, lease_ms: int) -> Lease:
        """Take or prolong the lease of a session."""
        return Lease(int(self._acquire(keys=[keys.lease, keys.session, keys.finetuning], args=[learner, lease_ms])))

    def release(self, keys: SessionKeys, learner: str) -> None:
        """Give the lease back."""
        self._release(keys=[keys.lease], args=[learner])

    def finish(self, message_id: str) -> None:
        """Take a job off the stream."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.xack(JOBS, LEARNERS, message_id)
            pipe.xdel(JOBS, message_id)
            pipe.execute()

    def _deliveries(self, learner: str) -> dict[str, int]:
        pending = cast(list[dict[str, Any]], self.redis.xpending_range(JOBS, LEARNERS, "-", "+", 1000, consumername=learner))
        return {entry["message_id"].decode(): int(entry["times_delivered"]) for entry in pending}


def _claims(entries: list[Any], deliveries: dict[str, int]) -> list[Claim]:
    claims = []
    for message_id, fields in entries:
        job = msgspec.json.decode(fields[b"job"], type=Job)
        claims.append(Claim(message_id.decode(), job.session_id, deliveries.get(message_id.decode(), 1)))
    return claims
