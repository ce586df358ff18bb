"""Policy versions of a session and the progress of its fine-tuning: written by the learner that holds the session's lease, read by the API.

Version 0 is the bundle's own policy. A new version gets the next number, whether it is published or rejected; the session's ``current``
names the one that the next skill choice uses. Rolling back sets ``current`` back and pauses fine-tuning, since the next update would
otherwise undo it; resumed, the learner begins again from the version that serves. A session that went back by itself goes on by itself too,
once its returns are what they were.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import msgspec
from redis import Redis

from service.errors import UnknownVersion
from service.judgement import Fallback, Fallen
from service.keys import COUNTERS, SessionKeys
from service.policies import MetaPolicy, Networks, PolicyWeights
from service.schemas import LearningState, PolicyEvent, PolicyVersion, VersionStatus
from service.version_scripts import CHECKPOINT, MAKE_CURRENT, PUBLISH, REPORT, RESUME

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Progress:
    """Where fine-tuning of a session stands, as stored."""

    paused: bool
    state: LearningState
    episodes_learned: int
    updates: int
    losses: Numbers
    error: str | None
    restart: int | None
    """The version that the learner has to begin again from, before anything else."""


@dataclass(frozen=True)
class Candidate:
    """What a learner brings after an episode: weights that passed the guards, or none and the reason.

    ``checkpoint`` is empty when the learner's state is not worth going on from.
    """

    weights: PolicyWeights | None
    reason: str
    episode: int
    episodes_learned: int
    metrics: Numbers
    checkpoint: bytes
    needs_approval: bool = False


class VersionStore:
    """Policy versions and progress in Redis. redis.RedisError goes up as it is."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis
        self._report = redis.register_script(REPORT)
        self._checkpoint = redis.register_script(CHECKPOINT)
        self._publish = redis.register_script(PUBLISH)
        self._make_current = redis.register_script(MAKE_CURRENT)
        self._resume = redis.register_script(RESUME)

    def progress(self, keys: SessionKeys) -> Progress:
        """Where fine-tuning stands."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.finetuning)
            pipe.exists(keys.lease)
            fields, leased = cast(tuple[dict[bytes, bytes], int], tuple(pipe.execute()))
        paused = fields.get(b"paused") == b"1"
        state = cast(LearningState, fields.get(b"state", b"idle").decode())
        if (state == "running" and not leased) or (state == "idle" and b"queued" in fields):
            state = "queued"  # its learner died and the job waits for the next one; or a new job came as the last one ended
        return Progress(
            paused=paused,
            state="paused" if paused else state,
            episodes_learned=int(fields.get(b"learned", 0)),
            updates=int(fields.get(b"updates", 0)),
            losses=msgspec.json.decode(fields.get(b"losses", b"{}"), type=Numbers),
            error=fields.get(b"error", b"").decode() or None,
            restart=int(fields[b"restart"]) if b"restart" in fields else None,
        )

    def pause(self, keys: SessionKeys, paused: bool) -> None:
        """Pause or resume, whatever the session would have done by itself."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.finetuning, "paused", "1" if paused else "0")
            pipe.hdel(keys.finetuning, "fallback")
            pipe.pttl(keys.session)
            left = int(pipe.execute()[-1])
        self.redis.pexpire(keys.finetuning, max(1, left))

    def falls(self, keys: SessionKeys) -> tuple[Fallback | None, list[Fallen]]:
        """What the session went back from by itself, if it has not gone on yet; and all versions that were ever gone back from."""
        fallback, fallen = cast(list[bytes | None], self.redis.hmget(keys.finetuning, ["fallback", "fallen"]))
        return (
            None if fallback is None else msgspec.json.decode(fallback, type=Fallback),
            msgspec.json.decode(fallen or b"[]", type=list[Fallen]),
        )

    def resume(self, keys: SessionKeys, version: int, reason: str) -> bool:
        """Go on with fine-tuning after the session went back by itself. False when that was done, or a client has decided otherwise."""
        return bool(self._resume(keys=[keys.finetuning, keys.history], args=[_event("resumed", version, reason)]))

    def versions(self, keys: SessionKeys) -> list[PolicyVersion]:
        """Records of all versions after the bundle's own, in order."""
        records = cast(dict[bytes, bytes], self.redis.hgetall(keys.policy))
        found = [msgspec.json.decode(record, type=PolicyVersion) for record in records.values()]
        return sorted(found, key=lambda record: record.version)

    def history(self, keys: SessionKeys) -> list[PolicyEvent]:
        """What became of versions, in order."""
        return [msgspec.json.decode(event, type=PolicyEvent) for event in cast(list[bytes], self.redis.lrange(keys.history, 0, -1))]

    def approve(self, keys: SessionKeys, version: int | None) -> None:
        """Make a candidate (None: the newest) the current version. Raises UnknownVersion when there is none or its weights are gone."""
        candidates = {record.version: record for record in self.versions(keys) if record.status == "candidate"}
        if version is None:
            version = max(candidates, default=None)
        event = _event("approved", version or 0, "a client approved it")
        approved = [msgspec.structs.replace(candidates[version], status="published")] if version in candidates else []
        if version is None or not approved or not self._current(keys, version, event, approved):
            kept = {int(each) for each in cast(list[bytes], self.redis.hkeys(keys.weights))}
            raise UnknownVersion(
                "that candidate's weights are no longer kept" if version in candidates else "there is no such candidate",
                expected=sorted(kept & candidates.keys()),
                received=version,
                action="Name one of the candidates: GET /v1/sessions/{id}/policy.",
            )

    def _current(
        self, keys: SessionKeys, version: int, event: bytes, changed: list[PolicyVersion], fallen: bytes = b"", fallback: bytes = b""
    ) -> bool:
        names = [keys.session, keys.weights, keys.finetuning, keys.history, keys.policy]
        records = [part for record in changed for part in (record.version, msgspec.json.encode(record))]
        return bool(self._make_current(keys=names, args=[version, event, fallen, fallback, *records]))

    def roll_back(self, keys: SessionKeys, version: int | None, current: int, reason: str, fallback: Fallback | None = None) -> None:
        """Make ``version`` (None: the published one before ``current``) the current one and pause fine-tuning.

        With ``fallback`` the session may `resume` by itself. Raises UnknownVersion when there is none, it was rejected, it waits for
        approval, or its weights are no longer kept.
        """
        records = self.versions(keys)
        if any(record.version == version and record.status == "candidate" for record in records):
            raise self._unknown(keys, version, current)
        published = [0, *(record.version for record in records if record.status == "published")]
        if version is None:
            version = max((number for number in published if number < current), default=None)
        if version is None:
            raise self._unknown(keys, version, current)
        fallen = [*self.falls(keys)[1], *([Fallen(version + 1, current)] if version < current else [])]
        event, resumes = _event("rolled_back_to", version, reason), b"" if fallback is None else msgspec.json.encode(fallback)
        changed = []
        for record in records:
            status: VersionStatus | None = None
            if record.version > version and record.status == "published":
                status = "rolled_back"
            elif record.version == version and record.status == "rolled_back":
                status = "published"
            if status is not None:
                changed.append(msgspec.structs.replace(record, status=status))
        if not self._current(keys, version, event, changed, msgspec.json.encode(fallen), resumes):
            raise self._unknown(keys, version, current)

    def weights(self, keys: SessionKeys, version: int) -> PolicyWeights | None:
        """The weights of a version; None when they are gone."""
        data = cast(bytes | None, self.redis.hget(keys.weights, str(version)))
        return PolicyWeights.from_bytes(data) if data else None

    def policy(self, keys: SessionKeys, version: int, networks: Networks) -> MetaPolicy | None:
        """A version as it acts, 0 being the bundle's own; None when its weights are gone."""
        if version == 0:
            return networks.meta_policy
        weights = self.weights(keys, version)
        return None if weights is None else networks.with_weights(weights, version)

    def report(self, keys: SessionKeys, learner: str, **fields: str | int | bytes) -> bool:
        """Write progress; False when this learner does not hold the session (any more)."""
        pairs = [part for pair in fields.items() for part in pair]
        return bool(self._report(keys=[keys.lease, keys.session, keys.finetuning], args=[learner, *pairs]) == 1)

    def save_checkpoint(self, keys: SessionKeys, learner: str, checkpoint: bytes, restarted: int | None = None) -> bool:
        """Store the learner's checkpoint; False when this learner does not hold the session (any more).

        ``restarted``: it is one that has begun again from this version, as `Progress.restart` asked for.
        """
        names = [keys.lease, keys.session, keys.checkpoint, keys.finetuning]
        return bool(self._checkpoint(keys=names, args=[learner, checkpoint, "" if restarted is None else restarted]) == 1)

    def load_checkpoint(self, keys: SessionKeys) -> bytes | None:
        """The learner's checkpoint, if there is one."""
        return cast(bytes | None, self.redis.get(keys.checkpoint))

    def publish(self, keys: SessionKeys, learner: str, candidate: Candidate, kept: int) -> int:
        """Store a version with the checkpoint that it came from, in one step: all or nothing.

        Returns its number; 0 when fine-tuning is paused, -1 when this learner does not hold the session (any more).
        """
        number = int(cast(bytes | None, self.redis.hget(keys.finetuning, "versions")) or 0) + 1
        passed: VersionStatus = "candidate" if candidate.needs_approval else "published"
        status: VersionStatus = passed if candidate.weights else "rejected"
        record = PolicyVersion(number, _now(), status, candidate.reason, candidate.episode, candidate.metrics)
        weights = candidate.weights.to_bytes() if candidate.weights else b""
        found = self._publish(
            keys=[keys.lease, keys.session, keys.finetuning, keys.policy, keys.weights, keys.checkpoint, keys.history],
            args=[
                learner,
                number,
                msgspec.json.encode(record),
                weights,
                candidate.checkpoint,
                kept,
                candidate.episodes_learned,
                _event(status, number, candidate.reason),
                "1" if candidate.needs_approval else "",
            ],
        )
        if found > 0:
            self.redis.hincrby(COUNTERS, "versions_published" if candidate.weights else "versions_rejected", 1)
        return int(found)

    def count(self, **amounts: float) -> None:
        """Add to the totals of what learners did."""
        with self.redis.pipeline(transaction=False) as pipe:
            for name, amount in amounts.items():
                pipe.hincrbyfloat(COUNTERS, name, amount)
            pipe.execute()

    def counters(self) -> dict[str, float]:
        """Totals of what learners did."""
        return {name.decode(): float(value) for name, value in cast(dict[bytes, bytes], self.redis.hgetall(COUNTERS)).items()}

    def _unknown(self, keys: SessionKeys, version: int | None, current: int) -> UnknownVersion:
        kept = {int(number) for number in cast(list[bytes], self.redis.hkeys(keys.weights))}
        waiting = {record.version for record in self.versions(keys) if record.status == "candidate"}
        detail = f"there is no version {version} to go back to"
        if version is None:
            detail = f"there is no published version before {current}"
        elif version in waiting:
            detail = f"version {version} waits for approval, and never served"
        return UnknownVersion(
            detail,
            expected=[0, *sorted(kept - waiting)],
            received=version,
            action="Name one of the versions that served and whose weights are kept: GET /v1/sessions/{id}/policy.",
        )


def _event(event: str, version: int, reason: str) -> bytes:
    return msgspec.json.encode({"at": _now(), "event": event, "version": version, "reason": reason})


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
