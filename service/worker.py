"""``python -m service.worker``: the learner process. Takes sessions from the job stream and fine-tunes them, a slice each in turn.

A learner holds a session's lease while it works on it and renews it between slices. One that dies leaves its jobs pending: started again
under the same name it takes them up at once; another learner takes them when the lease has run out.
"""

import argparse
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from redis import Redis
from redis.exceptions import RedisError

from service.app import load_bundles
from service.errors import PolicyOutputInvalid, ServiceError, StartupError
from service.jobs import MAX_ATTEMPTS, Claim, JobQueue, Lease
from service.keys import SessionKeys
from service.learning import LeaseLost, SessionLearner, Stores, Turn
from service.logs import set_up_logs
from service.policies import Networks
from service.sessions import SessionStore
from service.settings import Settings, read_settings
from service.storage import connect
from service.versions import VersionStore
from training.contract.errors import SkilletError

_log = logging.getLogger(__name__)
_IDLE_BLOCK_MS = 300
_RECONNECT_S = 0.3
_NICENESS = 10


@dataclass
class ActiveJob:
    """A session at work, and the messages that asked for it."""

    keys: SessionKeys
    learner: SessionLearner
    message_ids: list[str] = field(default_factory=list)
    deaths: int = 0
    """Learners that died while they worked on it, one after the other, when this one took it."""
    begun: bool = False
    interrupted: bool = False


class Worker:
    """One learner: several sessions at work in turn."""

    def __init__(self, settings: Settings, name: str, redis: "Redis", bundles: dict[str, Networks]) -> None:
        self._settings, self._name, self._process = settings, name, uuid.uuid4().hex
        self._bundles = {networks.digest: networks for networks in bundles.values()}
        self._jobs = JobQueue(redis)
        self._stores = Stores(SessionStore(redis), VersionStore(redis))
        self._lease_ms = int(settings.lease_s * 1000)
        self._learners: OrderedDict[str, SessionLearner] = OrderedDict()
        self._active: deque[ActiveJob] = deque()
        self._waiting: list[Claim] = []
        self._renewed_at = self._reclaimed_at = -math.inf

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; while Redis is gone, wait for it."""
        while not stop.is_set():
            try:
                self.open()
                while not stop.is_set():
                    self.turn(_IDLE_BLOCK_MS)
                self.hand_back()
            except RedisError as error:
                _log.warning("Redis does not answer (%s); the learner waits for it", type(error).__name__)
                self._active.clear()
                self._waiting.clear()
                self._learners.clear()
                time.sleep(_RECONNECT_S)  # not stop.wait: the signal handler that sets it, in this thread, would wait for wait's lock

    def open(self) -> None:
        """Join the consumer group, and take up what an earlier process of this name left."""
        self._jobs.open()
        for claim in self._jobs.own(self._name):
            self._begin(claim)

    def turn(self, block_ms: int) -> bool:
        """Take what is new, do one slice of one session. Returns whether there was anything to do."""
        self._keep_alive()
        self._take(None if self._active else block_ms)
        if not self._active:
            return False
        job = self._active.popleft()
        match self._slice(job):
            case Turn.WORKED:
                self._active.append(job)
            case Turn.INTERRUPTED if not job.interrupted:
                job.interrupted = True  # first again: a process's first slice is slow, and this job would always pay for it
                self._active.appendleft(job)
            case Turn.INTERRUPTED:
                self._active.append(job)
            case Turn.CAUGHT_UP:
                self._finish(job)
        return True

    def hand_back(self) -> None:
        """Leave checkpoints and put unfinished jobs back, for the next learner to take at once."""
        for job in self._active:
            try:
                job.learner.leave()
            except (LeaseLost, ServiceError):
                continue
            self._jobs.enqueue(job.keys)
            self._finish(job)
        for claim in self._waiting:
            keys = SessionKeys(claim.session_id)
            self._jobs.started(keys, claim.token)  # or the note of this very job would stand for the new one, which was never queued
            self._jobs.enqueue(keys)
            self._jobs.finish(claim.message_id)

    def _take(self, block_ms: int | None) -> None:
        for claim in self._waiting.copy():
            self._waiting.remove(claim)
            self._begin(claim)
        while len(self._active) < self._settings.active_sessions:
            fresh = self._jobs.take(self._name, block_ms)
            if fresh is None:
                return
            self._begin(fresh)
            block_ms = None

    def _begin(self, claim: Claim) -> None:
        keys = SessionKeys(claim.session_id)
        for job in self._active:
            if job.learner.session_id == claim.session_id:
                job.message_ids.append(claim.message_id)
                self._jobs.started(keys, claim.token)
                return
        lease = self._jobs.acquire(keys, self._name, self._lease_ms)
        if lease is Lease.HELD_BY_ANOTHER:
            self._waiting.append(claim)
        elif lease is Lease.SESSION_GONE:
            self._jobs.finish(claim.message_id)
        else:
            self._activate(claim, keys, lease)

    def _activate(self, claim: Claim, keys: SessionKeys, lease: Lease) -> None:
        self._jobs.started(keys, claim.token)
        learner = self._learner(claim.session_id)
        if learner is None:
            self._jobs.finish(claim.message_id)
            self._jobs.release(keys, self._name)
            return
        if lease is not Lease.TAKEN_AGAIN:
            learner.forget()
        job = ActiveJob(keys, learner, [claim.message_id], deaths=self._jobs.attempts(keys))
        if job.deaths >= MAX_ATTEMPTS:
            self._fail(job, f"{job.deaths} learners died one after the other while they worked on it, without getting any further")
            self._finish(job)
            return
        self._active.append(job)
        if job.deaths:  # first what learners died of: it gets further, or is soon given up, and the others are not held up for long
            self._active = deque(sorted(self._active, key=lambda each: -each.deaths))

    def _learner(self, session_id: str) -> SessionLearner | None:
        """The session's learner, its networks in memory if it was here before; None when its bundle is not served here."""
        learner = self._learners.get(session_id)
        if learner is None:
            try:
                session = self._stores.sessions.load(session_id).session
            except ServiceError:
                return None
            networks = self._bundles.get(session.digest)
            if networks is None:
                reason = f"the learner has not the bundle {session.bundle} ({session.digest[:12]}) that the session was opened with"
                self._stores.versions.report(SessionKeys(session_id), self._name, state="failed", error=reason)
                return None
            learner = SessionLearner(session_id, self._name, networks, self._stores, self._settings)
        self._learners[session_id] = learner
        self._learners.move_to_end(session_id)
        while len(self._learners) > self._settings.active_sessions:
            self._learners.popitem(last=False)
        return learner

    def _slice(self, job: ActiveJob) -> Turn:
        try:
            if not job.begun:
                self._jobs.begin(job.keys, self._process)
                job.begun, job.deaths = True, 0
            return job.learner.advance()
        except LeaseLost:
            self._renewed_at = -math.inf  # the next turn finds out whether it only ran out, or another learner has the session
            return Turn.INTERRUPTED
        except RedisError:
            raise
        except Exception as error:
            self._learners.pop(job.learner.session_id, None)
            if isinstance(error, ServiceError) and not isinstance(error, PolicyOutputInvalid):
                return Turn.CAUGHT_UP  # the session went away
            _log.exception("fine-tuning of session %s failed", job.learner.session_id)
            self._fail(job, f"{type(error).__name__}: {error}"[:300])
            return Turn.CAUGHT_UP

    def _fail(self, job: ActiveJob, reason: str) -> None:
        try:
            job.learner.fail(reason)
        except (LeaseLost, ServiceError) as error:
            _log.info("session %s went away: %s", job.learner.session_id, error)

    def _finish(self, job: ActiveJob) -> None:
        self._jobs.release(job.keys, self._name)
        for message_id in job.message_ids:
            self._jobs.finish(message_id)

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if now - self._renewed_at > self._settings.lease_s / 4:
            self._renewed_at = now
            for job in list(self._active):
                self._renew(job)
            self._jobs.keep(self._name, [message_id for job in self._active for message_id in job.message_ids])
            self._jobs.keep(self._name, [claim.message_id for claim in self._waiting])
        if now - self._reclaimed_at > self._settings.lease_s / 2:
            self._reclaimed_at = now
            for claim in self._jobs.reclaim(self._name, self._lease_ms):
                self._begin(claim)

    def _renew(self, job: ActiveJob) -> None:
        lease = self._jobs.acquire(job.keys, self._name, self._lease_ms)
        if lease is Lease.TAKEN:
            job.learner.forget()
        elif lease is Lease.HELD_BY_ANOTHER:
            self._active.remove(job)  # its messages are left to whoever has it
        elif lease is Lease.SESSION_GONE:
            self._active.remove(job)
            self._finish(job)


def _stand_back() -> None:
    """Let everything else on the machine go first.

    Linux shares time between groups of processes before it looks at niceness, and a process with a session of its own, as the service
    starts learners, is a group of its own (sched(7), autogroup): its niceness is set apart.
    """
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):  # not Linux, or a kernel without such groups
        Path("/proc/self/autogroup").write_text(str(_NICENESS))


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m service.worker", description="Fine-tune sessions of the Redis at SKILLET_REDIS_URL.")
    parser.add_argument("--bundle", dest="bundles", action="append", type=Path, help="bundle directory; may be given again")
    parser.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}", help="must differ between learners")
    parser.add_argument("--bundle-key", dest="bundle_keys", action="append", type=Path, help="as of the service; may be given again")
    parser.add_argument("--digest", dest="digests", action="append", default=[], help="that a bundle must have, in the bundles' order")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    torch.set_num_threads(1)
    try:
        settings = read_settings(**{name: value for name in ("bundles", "bundle_keys") if (value := getattr(options, name))})
        set_up_logs(settings.log_format, settings.log_level)
        if settings.redis_url is None:
            raise StartupError("a learner needs the Redis of its service: set SKILLET_REDIS_URL")
        with connect(settings.redis_url, settings.redis_timeout_s) as redis:
            worker = Worker(settings, options.name, redis, load_bundles(settings, options.digests))
            _stand_back()  # not before: on a busy machine starting would take minutes
            worker.run(stop)
    except SkilletError as error:
        sys.stderr.write(f"skillet learner: {error}\n")
        return 2
    return 0


def _end(code: int) -> NoReturn:
    """End the process as it is.

    Taking the interpreter and torch apart would do nothing for anybody and costs processor time, for which a process that stands back waits
    for ten seconds and more where the machine is busy; whoever stops the service would wait with it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())
