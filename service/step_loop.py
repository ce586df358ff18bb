"""Acting and posting transitions: load the session, apply the rules of `service.acting` and `service.recording`, save, reply.

A save that finds the session changed by another request is thrown away and done again from the new state, so every reply is one that some
order of the requests gives.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from service import acting, recording, schemas, skill_choice
from service.adaptation import Adaptation
from service.deadlines import Deadline
from service.errors import ServiceError, UnknownBundle
from service.metrics import Metrics
from service.observations import check_observation
from service.policies import MetaPolicy, Networks
from service.policy_loading import PolicyLoader, Wanted
from service.session_errors import ConcurrentUpdate
from service.session_log import Acted, Began
from service.session_state import Changes, Explored, Loaded, Session, StartedEpisode, task_prior
from service.sessions import SessionStore
from service.settings import Settings
from service.versions import VersionStore
from training.contract.context import Floats, pack_rows, unpack_vector
from training.contract.exploration import Phase

MAX_ATTEMPTS = 20
_KEPT_STARTS = 4
Reply = TypeVar("Reply")
Change = Callable[[Loaded, Changes, Networks, MetaPolicy | None], Reply]


class StepLoop:
    """The calls that a control loop makes."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: SessionStore,
        versions: VersionStore,
        bundles: dict[str, Networks],
        adaptation: Adaptation,
        metrics: Metrics,
    ) -> None:
        self.settings, self.store = settings, store
        self.policies = PolicyLoader(versions, settings.cached_versions)
        self._bundles, self._adaptation, self._metrics = bundles, adaptation, metrics

    async def start_episode(self, session_id: str, key: str | None = None) -> schemas.EpisodeStarted:
        """End an open episode as truncated, then begin the next with the posterior of all context so far.

        Asked again with the same ``key``, the same answer again.
        """
        for _ in range(MAX_ATTEMPTS):
            loaded = self.store.load(session_id)
            networks = self.networks(loaded)
            if (before := _started_with(loaded.session, key)) is not None:
                return msgspec.structs.replace(before, replayed=True)
            if loaded.session.episode_open or loaded.session.unsettled:
                changes = Changes()
                recording.close_episode(loaded.session, changes, networks)
                if not self.store.save(loaded, changes):
                    continue
                self.grew(loaded, changes, networks)
            phase = acting.next_phase(loaded.session, loaded.current_version)
            episode, posterior, candidates = loaded.session.episode + 1, task_prior(networks.spec.task_embedding_dim), None
            explores_posterior = acting.explores_posterior(loaded.session, phase, episode)
            if phase is not Phase.EXPLORING or explores_posterior:
                posterior = await self._adaptation.posterior(loaded, networks)
            if explores_posterior:
                candidates = await self._adaptation.candidates(loaded, networks, posterior)
            answer = schemas.EpisodeStarted(episode, phase, loaded.session.ended)
            acting.begin_episode(loaded.session, phase, posterior, candidates, await self._adaptation.way_back(loaded, networks))
            if key is not None:
                loaded.session.started = [*loaded.session.started, StartedEpisode(key, answer)][-_KEPT_STARTS:]
            if self.store.save(loaded, Changes(events=[_began(loaded.session)])):
                self.policies.prepare(loaded, networks)
                return answer
        raise _busy(session_id)

    async def end_episode(self, session_id: str) -> schemas.EpisodeEnded:
        """End an open episode as truncated, without beginning another. Asked again, the same answer again, less the rewards that came."""

        def change(loaded: Loaded, changes: Changes, networks: Networks, policy: MetaPolicy | None) -> schemas.EpisodeEnded:
            if loaded.session.episode < 0:
                raise recording.no_open_episode(loaded.session)
            return schemas.EpisodeEnded(recording.end_episode(loaded.session, changes, networks))

        return await self._apply(session_id, change)

    async def act(self, session_id: str, request: schemas.Act, deadline: Deadline | None = None) -> schemas.Action:
        """The action for one step. Raises DeadlinePassed, without effect, when it would be late."""

        def change(loaded: Loaded, changes: Changes, networks: Networks, policy: MetaPolicy | None) -> schemas.Action:
            recording.check_episode(loaded.session, request.episode)
            state = check_observation(request.observation, networks, "$.observation")
            return self._act(loaded.session, request.step, state, networks, policy, changes)

        return self.counted(await self._apply(session_id, change, deadline))

    async def step(self, session_id: str, request: schemas.Transition, deadline: Deadline | None = None) -> schemas.Action:
        """Store the outcome of one step and give the action for the next. Raises DeadlinePassed, without effect, when it would be late."""

        def change(loaded: Loaded, changes: Changes, networks: Networks, policy: MetaPolicy | None) -> schemas.Action:
            session = loaded.session
            outcome = recording.check_outcome(request, networks, "$")
            status = recording.place(session, request, outcome, changes, networks, self.settings.reorder_window)
            if status == "duplicate":
                recording.check_newest(session, request.step)
            if not session.episode_open or recording.ended_at(session) is not None:
                return acting.over(session, request.step + 1, replayed=status == "duplicate")
            state = unpack_vector(outcome.next_state)
            return self._act(session, request.step + 1, state, networks, policy, changes)

        return self.counted(await self._apply(session_id, change, deadline))

    async def steps(self, session_id: str, request: schemas.PostTransitions, deadline: Deadline | None = None) -> schemas.Action:
        """As many calls of `step`, in order, saved at once; the action for the step after the last.

        For robots that decode the running skill themselves: they know the actions in between. All of it happens, or nothing.
        """

        def change(loaded: Loaded, changes: Changes, networks: Networks, policy: MetaPolicy | None) -> list[schemas.Action]:
            session = loaded.session
            given = []
            for index, item in enumerate(request.transitions):
                outcome = recording.check_outcome(item, networks, f"$.transitions[{index}]")
                (result,) = recording.record(session, [(item, outcome)], changes, networks, self.settings.reorder_window)
                known, is_last = result.status == "duplicate", index == len(request.transitions) - 1
                if known and is_last:
                    recording.check_newest(session, item.step)
                if not session.episode_open or recording.ended_at(session) is not None:
                    given.append(acting.over(session, item.step + 1, replayed=known))
                elif is_last or item.step + 1 == session.act_step:
                    state = unpack_vector(outcome.next_state)
                    given.append(self._act(session, item.step + 1, state, networks, policy, changes))
            return given

        given = await self._apply(session_id, change, deadline, wanted=acting.next_version)
        return [self.counted(action) for action in given][-1]

    async def add_transitions(self, session_id: str, request: schemas.PostTransitions) -> schemas.TransitionsPosted:
        """Store outcomes of acted steps."""

        def change(loaded: Loaded, changes: Changes, networks: Networks, policy: MetaPolicy | None) -> schemas.TransitionsPosted:
            session = loaded.session
            outcomes = [
                (item, recording.check_outcome(item, networks, f"$.transitions[{i}]")) for i, item in enumerate(request.transitions)
            ]
            results = recording.record(session, outcomes, changes, networks, self.settings.reorder_window)
            return schemas.TransitionsPosted(
                *_counts(results),
                results=results,
                gaps=recording.gaps(session),
                context_size=session.rows,
                task_version=self.store.task_version(loaded.keys),
                episode_over=not session.episode_open,
            )

        return await self._apply(session_id, change)

    async def add_rewards(self, session_id: str, request: schemas.PostRewards) -> schemas.RewardsPosted:
        """Store rewards that follow their transitions."""

        def change(loaded: Loaded, changes: Changes, networks: Networks, policy: MetaPolicy | None) -> schemas.RewardsPosted:
            results = recording.record_rewards(loaded.session, request.rewards, changes, networks.layout)
            return schemas.RewardsPosted(*_counts(results), results, recording.pending_rewards(loaded.session))

        return await self._apply(session_id, change)

    def networks(self, loaded: Loaded) -> Networks:
        """The networks that the session was opened with. Raises UnknownBundle when this service does not serve them."""
        session = loaded.session
        networks = self._bundles.get(session.bundle)
        if networks is None or networks.digest != session.digest:
            raise UnknownBundle(
                f"this service does not serve the bundle that the session was opened with: {session.bundle}",
                expected=session.digest,
                received=networks.digest if networks else None,
                action="Start the service with that bundle, or open a new session.",
            )
        return networks

    def _act(
        self, session: Session, step: int, state: Floats, networks: Networks, policy: MetaPolicy | None, changes: Changes
    ) -> schemas.Action:
        answer = acting.act(session, step, state, networks=networks, policy=policy, max_ahead=self.settings.max_steps_ahead)
        if not answer.replayed:
            changes.events.append(acted(session, answer, state, networks.spec.skill_horizon))
        return answer

    async def _apply(
        self, session_id: str, change: Change[Reply], deadline: Deadline | None = None, *, wanted: Wanted = acting.wanted_version
    ) -> Reply:
        for attempt in range(MAX_ATTEMPTS):
            if deadline is not None:
                deadline.check()
            loaded = self.store.load(session_id) if attempt else self.store.recall(session_id)
            networks = self.networks(loaded)
            if not loaded.recalled:
                self.policies.prepare(loaded, networks)
            changes = Changes()
            try:
                reply = change(loaded, changes, networks, await self.policies.get(loaded, networks, wanted))
            except ServiceError:
                if not loaded.recalled:
                    raise
                continue  # refused for what the session was; see what it is
            if deadline is not None:
                deadline.check()
            if self.store.save(loaded, changes):
                self.grew(loaded, changes, networks)
                return reply
            await asyncio.sleep(0 if attempt < 3 else 0.001 * attempt)  # let the other requests finish
        raise _busy(session_id)

    def counted(self, answer: schemas.Action) -> schemas.Action:
        """An answer, its limits counted."""
        if not answer.replayed:
            for limit in answer.limited:
                self._metrics.limited.labels(limit).inc()
            if answer.outside:
                self._metrics.outside.inc()
        return answer

    def grew(self, loaded: Loaded, changes: Changes, networks: Networks) -> None:
        """Count what was saved, and start what follows from it."""
        self.all_grew([(loaded, changes, networks)])

    def all_grew(self, saved: Sequence[tuple[Loaded, Changes, Networks]]) -> None:
        """`grew` of several sessions."""
        metrics = self._metrics
        counts = (
            (metrics.transitions, sum(changes.transitions for _, changes, _ in saved)),
            (metrics.skill_transitions, sum(len(changes.rows) for _, changes, _ in saved)),
            (metrics.episodes, sum(changes.episode is not None for _, changes, _ in saved)),
        )
        for counter, count in counts:
            if count:
                counter.inc(count)
        for loaded, changes, networks in saved:
            self._adaptation.context_grew(loaded, changes, networks)


def _began(session: Session) -> Began:
    explored = session.explored or Explored()
    plausibility = b"" if session.rewarded or session.followed is None else session.followed.plausibility
    return Began(
        session.episode,
        session.rows,
        session.phase,
        session.use_skill_prior,
        session.embedding,
        session.task_version,
        explored.route,
        plausibility,
        explored.seen,
    )


def acted(session: Session, answer: schemas.Action, state: Floats, horizon: int) -> Acted:
    """What the log keeps of a new action; skills have ``horizon`` steps."""
    skill = session.skills[-1]
    action = pack_rows(np.array(answer.action, np.float32))
    began = skill.skill if answer.skill_step == 0 else None
    beyond, detour = session.beyond_from >= 0, skill_choice.on_detour(session, answer.step, horizon)
    due = skill_choice.rewards_due(session, answer.step)
    return Acted(answer.step, pack_rows(state), action, answer.policy_version, answer.phase, began, session.rewarded, beyond, detour, due)


def _started_with(session: Session, key: str | None) -> schemas.EpisodeStarted | None:
    return next((started.answer for started in session.started if started.key == key), None)


def _counts(results: list[schemas.ItemResult]) -> tuple[int, int, int]:
    """How many were accepted, were there already, and were refused."""
    count = Counter(result.status for result in results)
    return count["stored"] + count["held"], count["duplicate"], count["refused"]


def _busy(session_id: str) -> ConcurrentUpdate:
    return ConcurrentUpdate(
        f"other requests kept changing session {session_id}",
        expected="one control loop per session",
        action="Send the request again; let one client at a time drive a session.",
    )
