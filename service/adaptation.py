"""Adapting a session to its task: task inference when context comes in, and a job for the learners when an episode completes.

Inference runs in a thread of its own, never on the action path; at most one at a time for a session.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from redis.exceptions import RedisError

from service import schemas
from service.acting import learning_due
from service.errors import ServiceError, UnknownVersion
from service.jobs import JobQueue
from service.judgement import RECENT, REFERENCE, Fall, Fallback, find_fall, find_recovery
from service.keys import SessionKeys
from service.policies import Networks
from service.session_state import Changes, Loaded, Posterior, WayBack, task_prior
from service.sessions import SessionStore
from service.skill_choice import following
from service.versions import VersionStore
from service.views import belief_view
from training.contract.context import Floats
from training.contract.exploration import Exploration, turns
from training.contract.novelty import WAYS, goes_back_at_once, ways_to_rewards

_log = logging.getLogger(__name__)
_JUDGED_EPISODES = 3 * (RECENT[-1] + REFERENCE[1])
"""More than are compared: those of versions that were gone back from do not count."""


class Adaptation:
    """Task inference and fine-tuning jobs."""

    def __init__(
        self,
        store: SessionStore,
        versions: VersionStore,
        jobs: JobQueue,
        inference_interval_s: float,
        rolled_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._versions, self._jobs, self._interval_s = store, versions, jobs, inference_interval_s
        self.rolled_back = rolled_back
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="task-inference")
        self._running: dict[str, tuple[tuple[int, int], asyncio.Task[Posterior]]] = {}
        self._last_started: dict[str, float] = {}
        self._owed: dict[str, tuple[Loaded, bool]] = {}  # sessions whose newest episode nothing has followed from yet; was it tried?

    async def posterior(self, loaded: Loaded, networks: Networks) -> Posterior:
        """The task posterior of all context that ``loaded`` has: the stored one if it is up to date, else inferred now."""
        stored = self._store.load_task(loaded.keys, networks.spec.task_embedding_dim)
        if (stored.version, stored.revision) == (loaded.session.rows, loaded.session.revision):
            return stored
        return await asyncio.shield(self._infer(loaded, networks))

    async def candidates(self, loaded: Loaded, networks: Networks, posterior: Posterior) -> Floats | None:
        """Embeddings [n, E] of ``posterior`` that take turns in a session's next episode; None where none do."""
        session, belief, spec = loaded.session, networks.belief, networks.spec
        if not session.exploration.takes_turns or belief is None:
            return None
        count = turns(spec.episode_steps, spec.skill_horizon)

        def choose() -> Floats:
            rewarded = self._rewarded_states(loaded, networks)
            return belief.candidates(posterior.mean, posterior.scale, rewarded, seed=session.seed, episode=session.episode + 1, count=count)

        return await asyncio.get_running_loop().run_in_executor(self._executor, choose)

    async def way_back(self, loaded: Loaded, networks: Networks) -> WayBack | None:
        """How the next episode of a session that explores by novelty goes back to a reward; None for others."""
        session, belief = loaded.session, networks.belief
        if session.exploration is not Exploration.NOVELTY or not session.rewarded or belief is None or belief.novelty is None:
            return None
        novelty = belief.novelty

        def find() -> WayBack | None:
            records = self._store.episodes(loaded.keys, first=-WAYS)
            if not records:
                return None
            first = records[0].first_row
            rows = self._store.context(loaded.keys, first, session.rows, networks.layout.width)
            episodes = [rows[record.first_row - first : record.end_row - first] for record in records if not record.skipped]
            route = novelty.with_route(ways_to_rewards(episodes, networks.layout)).route
            newest = records[-1]
            return WayBack(route, newest.known_return == 0 and goes_back_at_once(newest.beyond_from))

        return await asyncio.get_running_loop().run_in_executor(self._executor, find)

    async def belief(self, loaded: Loaded, networks: Networks) -> schemas.Belief | None:
        """What a session that explores by a belief or by novelty makes of all that it has seen; None for others."""
        session, belief = loaded.session, networks.belief
        if not session.exploration.takes_turns or belief is None:
            return None
        plausibility = following(session, belief).plausibility

        def weigh() -> schemas.Belief:
            return belief_view(belief.particles, belief.weights(plausibility, self._rewarded_states(loaded, networks)))

        return await asyncio.get_running_loop().run_in_executor(self._executor, weigh)

    def _rewarded_states(self, loaded: Loaded, networks: Networks) -> Floats:
        """The states [n, S] after which the session was rewarded."""
        layout = networks.layout
        rows = self._store.context(loaded.keys, 0, loaded.session.rows, layout.width)
        return rows[rows[:, layout.reward] != 0, layout.next_state]

    def context_grew(self, loaded: Loaded, changes: Changes, networks: Networks) -> None:
        """Called after a save: start inference (within an episode not too often), and queue the session once an episode completed."""
        session_id, now = loaded.session.session_id, time.monotonic()
        grown = changes.rows or changes.late_rewards or changes.episode is not None
        if changes.episode is not None or (not grown and not loaded.session.episode_open):
            self._owed[session_id] = (loaded, False)  # or told again that it ended: what follows from that may have been cut off
        if self._owed:
            self._follow_up()
        if not grown:
            return
        if changes.episode is not None or now - self._last_started.get(session_id, -self._interval_s) >= self._interval_s:
            self._infer(loaded, networks)
        if changes.episode is not None:
            self._last_started.pop(session_id, None)

    def _follow_up(self) -> None:
        """Judge and queue after episodes, which are saved: a failure is not their clients', and is made up for after the next save."""
        for session_id, (owed, tried) in list(self._owed.items()):
            try:
                self._judge(owed)
                self.queue_if_due(owed, surely=tried)  # what failed may have noted a job that it did not write
            except RedisError as error:
                self._owed[session_id] = (owed, True)
                _log.warning("session %s is judged and queued later: %s: %s", session_id, type(error).__name__, error)
                return
            del self._owed[session_id]

    def _judge(self, loaded: Loaded) -> None:
        """Go back when the returns under the newest versions fell, and on once they are again what they were.

        Done anew with each episode, so one that was missed is made up for.
        """
        current, (fallback, fallen) = loaded.current_version, self._versions.falls(loaded.keys)
        if current == 0 and fallback is None:
            return
        records = self._store.episodes(loaded.keys, first=-_JUDGED_EPISODES)
        if fallback is not None:
            reason = find_recovery(records, fallback)
            if reason is not None and self._versions.resume(loaded.keys, fallback.version, reason):
                _log.info("session %s learns on from policy version %d: %s", loaded.session.session_id, fallback.version, reason)
        elif (fall := find_fall(records, current, fallen)) is not None:
            version = self._go_back(loaded, fall, records[-1].episode)
            _log.warning("session %s goes back from policy version %d to %d: %s", loaded.session.session_id, current, version, fall.reason)
            self.rolled_back()

    def _go_back(self, loaded: Loaded, fall: Fall, episode: int) -> int:
        """To the best version whose weights are still kept; the bundle's own is always there. Returns which it is."""
        for version in [*fall.versions, 0]:
            with suppress(UnknownVersion):
                fallback = Fallback(version, episode, fall.before)
                self._versions.roll_back(loaded.keys, version, loaded.current_version, fall.reason, fallback)
                return version
        raise AssertionError("the bundle's own policy was refused")

    def queue_if_due(self, loaded: Loaded, *, surely: bool = False) -> None:
        """Queue the session for a learner if it has episodes to learn from; ``surely`` as `JobQueue.enqueue`."""
        if learning_due(loaded.session):
            self._jobs.enqueue(loaded.keys, surely=surely)

    def forget(self, session_id: str) -> None:
        """Called when a session was closed."""
        self._last_started.pop(session_id, None)
        self._owed.pop(session_id, None)

    def close(self) -> None:
        """Stop the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _infer(self, loaded: Loaded, networks: Networks) -> asyncio.Task[Posterior]:
        session_id, wanted = loaded.session.session_id, (loaded.session.rows, loaded.session.revision)
        version, task = self._running.get(session_id, (None, None))
        if task is not None and version == wanted:
            return task
        self._last_started[session_id] = time.monotonic()
        task = asyncio.create_task(self._infer_in_thread(loaded.keys, *wanted, networks))
        self._running[session_id] = (wanted, task)
        task.add_done_callback(lambda done: self._finished(session_id, done))
        return task

    async def _infer_in_thread(self, keys: SessionKeys, rows: int, revision: int, networks: Networks) -> Posterior:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._infer_now, keys, rows, revision, networks)

    def _infer_now(self, keys: SessionKeys, rows: int, revision: int, networks: Networks) -> Posterior:
        if rows == 0:
            return task_prior(networks.spec.task_embedding_dim)
        context = self._store.context(keys, 0, rows, networks.layout.width)
        posterior = Posterior(rows, *networks.infer_task(context), revision)
        self._store.save_task(keys, posterior)
        return posterior

    def _finished(self, session_id: str, done: asyncio.Task[Posterior]) -> None:
        if self._running.get(session_id, (None, None))[1] is done:
            del self._running[session_id]
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, RedisError | ServiceError):
            _log.warning("task inference of session %s failed, and is done again when it is needed: %s", session_id, error)
        elif error is not None:
            _log.error("task inference of session %s failed", session_id, exc_info=error)
