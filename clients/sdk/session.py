"""A session: the control loop, and what can be asked about its task, its learner and its policy."""

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import numpy as np

from clients.sdk.errors import (
    EpisodeState,
    InvalidObservation,
    InvalidRequest,
    ItemsRefused,
    SessionGone,
    SkilletError,
    UnexpectedReply,
)
from clients.sdk.models import (
    Action,
    EndedEpisode,
    EpisodeStarted,
    FinetuningStatus,
    Floats,
    ItemResult,
    ModelSpec,
    PolicyVersions,
    RewardsPosted,
    SessionInfo,
    TaskPosterior,
    Transition,
    TransitionsPosted,
    parse,
)
from clients.sdk.safety import ActionGuard

if TYPE_CHECKING:
    from clients.sdk.client import SkilletClient


class Session:
    """One robot's conversation with the service. Leaving its ``with`` block closes it. Made by SkilletClient, which opens or attaches.

    It numbers episodes and steps itself::

        session.start_episode()
        action = session.act(observation)
        while not action.episode_over:
            observation, reward, terminated, truncated, _ = env.step(action.action)
            action = session.step(reward, observation, terminated, truncated)

    A call that raised ConnectionFailed can be made again with the same arguments: it has one effect.
    """

    def __init__(self, client: "SkilletClient", info: SessionInfo) -> None:
        if info.specs is None:
            raise UnexpectedReply("the session's reply has no 'specs'", expected="the bundle's spec", received=None)
        self.id: str = info.session_id
        self.specs: ModelSpec = info.specs
        self.envelope, self.bundle, self.shares_skills = info.envelope, info.bundle, info.share_skills
        self._client = client
        self._path = f"/v1/sessions/{quote(info.session_id, safe='')}"
        self._channel = client.channel(info.session_id, self._path)
        self._dim = info.specs.observation.dim
        self._episode, self._open = info.episode, info.episode_open
        # The next step to ask an action for, and the next one to report the outcome of: the first whose outcome the service has not.
        self._next_act = info.step
        self._next_outcome = info.gaps[0] if info.gaps else info.step
        self.guard = ActionGuard(info.envelope, info.specs) if info.envelope is not None and client.guards_actions else None
        self.patient = True  # whether a failed request is sent again until the client gives up
        self._last_action: Floats | None = None
        self._start_key: str | None = None  # of an episode whose start has had no reply yet

    @property
    def episode(self) -> int | None:
        """Number of the open or last episode; None before the first."""
        return self._episode

    @property
    def fresh_episode(self) -> bool:
        """Whether an episode is open and no action of it was asked for."""
        return self._open and self._next_act == 0

    def info(self) -> SessionInfo:
        """The session as the service has it now."""
        return parse(SessionInfo, self._client.call("GET", self._path))

    def start_episode(self) -> EpisodeStarted:
        """Start the next episode; one that is still open ends as truncated. Called again after ConnectionFailed, it starts one."""
        self._start_key = self._start_key or uuid.uuid4().hex
        started = parse(EpisodeStarted, self._channel.call("episodes", {}, key=self._start_key, repeatable=self.patient))
        self._start_key, self._last_action = None, None
        self._episode, self._open, self._next_act, self._next_outcome = started.episode, True, 0, 0
        return started

    def act(self, observation: Any, *, budget_s: float | None = None) -> Action:
        """The action for ``observation`` [S], at the episode's next step. May run ahead of `post_transitions`.

        With ``budget_s`` it is sent once and must be answered within that time: the service refuses it when it comes too late.
        Raises InvalidObservation, EpisodeState, Conflict; UnsafeAction; with a budget DeadlinePassed and RequestTimeout.
        """
        return self.acted(self._call("act", self.act_body(observation), budget_s))

    def act_body(self, observation: Any) -> dict[str, Any]:
        """What `act` sends. Raises InvalidObservation, EpisodeState."""
        return {"episode": self._require_episode(), "step": self._next_act, "observation": self._checked(observation)}

    def acted(self, reply: Any) -> Action:
        """Take the reply to `act_body`."""
        action = self._guarded(_action(reply))
        self._next_act += 1
        return action

    def step(
        self, reward: float | None, next_observation: Any, terminated: bool, truncated: bool, *, budget_s: float | None = None
    ) -> Action:
        """Report the outcome of the last action and get the next one: ``next_observation`` [S]; a reward of None follows by `post_rewards`.

        The reply to an outcome that is terminated or truncated has ``episode_over`` and no action. ``budget_s`` as in `act`.
        Raises InvalidObservation, InvalidRequest (reward not finite), EpisodeState, Conflict; and as `act`.
        """
        return self.stepped(self._call("step", self.step_body(reward, next_observation, terminated, truncated), budget_s))

    def step_body(self, reward: float | None, next_observation: Any, terminated: bool, truncated: bool) -> dict[str, Any]:
        """What `step` sends. Raises as it does before it sends."""
        episode, step = self._require_episode(), self._next_outcome
        if step != self._next_act - 1:
            ahead = self._next_act - step
            raise EpisodeState(
                f"step reports the outcome of the last action, and {ahead} actions have no outcome yet",
                action="call act first" if ahead == 0 else "post the earlier ones with post_transitions",
            )
        return {"episode": episode, "step": step, **self.outcome(reward, next_observation, terminated, truncated)}

    def stepped(self, reply: Any) -> Action:
        """Take the reply to `step_body`."""
        action = self._guarded(_action(reply))
        self._next_outcome += 1
        self._next_act += 1
        self._open = not action.episode_over
        return action

    def steps(self, transitions: Sequence[Transition], *, budget_s: float | None = None) -> Action:
        """Report the outcomes of the last action and of those after it that were decoded here (`EdgeSession`), and get the next one.

        1 to 1000 of them; as many calls of `step` in one. Raises as `step`; all of it has happened, or nothing.
        """
        episode, first = self._require_episode(), self._next_outcome
        if first != self._next_act - 1:
            raise EpisodeState("steps begins with the outcome of the last action", action="call act first, or post_transitions")
        batch = [
            {"episode": episode, "step": first + offset, **self.outcome(t.reward, t.next_observation, t.terminated, t.truncated)}
            for offset, t in enumerate(transitions)
        ]
        self._last_action = None  # what was decoded here in between is not known
        action = self._guarded(_action(self._call("steps", {"transitions": batch}, budget_s)))
        self._next_outcome += len(batch)
        self._next_act = self._next_outcome + 1
        self._open = not action.episode_over
        return action

    def post_transitions(self, transitions: Iterable[Transition]) -> TransitionsPosted:
        """Report outcomes of actions that `act` gave, oldest first, 1 to 1000 of them. Those that the service has already are duplicates.

        Raises ItemsRefused when some were refused; the others are stored.
        """
        episode, first = self._require_episode(), self._next_outcome
        batch = [
            {"episode": episode, "step": first + offset, **self.outcome(t.reward, t.next_observation, t.terminated, t.truncated)}
            for offset, t in enumerate(transitions)
        ]
        posted = parse(TransitionsPosted, self._channel.call("transitions", {"transitions": batch}))
        _check_items(posted.results)
        self._next_outcome += len(batch)
        self._open = not any(t["terminated"] or t["truncated"] for t in batch)
        return posted

    def post_rewards(self, rewards: Mapping[int, float]) -> RewardsPosted:
        """Report rewards, by step, of the newest episode's transitions that were reported with a reward of None. 1 to 1000 of them.

        They count until the next episode starts. Raises InvalidRequest (not finite), ItemsRefused as `post_transitions`.
        """
        if self._episode is None:
            raise EpisodeState("no episode was started", action="call start_episode first")
        batch = [{"episode": self._episode, "step": step, "reward": _finite(reward)} for step, reward in rewards.items()]
        posted = parse(RewardsPosted, self._channel.call("rewards", {"rewards": batch}))
        _check_items(posted.results)
        return posted

    def end_episode(self) -> EndedEpisode | None:
        """End the newest episode, as truncated if it is open, without starting the next. `post_rewards` may still follow.

        Returns what was kept of it and what is missing; None when it had ended by itself with nothing missing.
        Raises NoOpenEpisode before the first episode.
        """
        ended = self._channel.call("episodes/end", {}, repeatable=self.patient)["ended"]
        self._open = False
        return None if ended is None else parse(EndedEpisode, ended)

    def task(self) -> TaskPosterior:
        """The task posterior."""
        return parse(TaskPosterior, self._client.call("GET", f"{self._path}/task"))

    def finetuning(self, wait_s: float = 0.0) -> FinetuningStatus:
        """Where the learner stands; with ``wait_s`` (at most 60) answers as soon as it has caught up with the completed episodes.

        Raises InvalidRequest for a time that cannot be waited.
        """
        if not 0 <= wait_s < math.inf:
            raise InvalidRequest("wait_s is no time to wait", expected="seconds, 0 to 60", received=repr(wait_s))
        query = f"?wait_s={wait_s:g}" if wait_s else ""
        return parse(FinetuningStatus, self._client.call("GET", f"{self._path}/finetuning{query}", extra_s=wait_s))

    def pause(self) -> FinetuningStatus:
        """Let the learner stop with this session; acting goes on."""
        return parse(FinetuningStatus, self._client.call("PATCH", f"{self._path}/finetuning", {"paused": True}))

    def resume(self) -> FinetuningStatus:
        """Let the learner go on with this session."""
        return parse(FinetuningStatus, self._client.call("PATCH", f"{self._path}/finetuning", {"paused": False}))

    def force_phase(self, phase: str | None) -> SessionInfo:
        """Hold a phase (exploring, adapted, finetuning) from the next episode on; None returns to the automatic order."""
        return parse(SessionInfo, self._client.call("PATCH", self._path, {"phase": phase}))

    def policy(self) -> PolicyVersions:
        """The policy versions."""
        return parse(PolicyVersions, self._client.call("GET", f"{self._path}/policy"))

    def approve(self, version: int | None = None) -> PolicyVersions:
        """Act with a candidate version (None: the newest), in a session opened with ``promotion="manual"``. Not sent twice."""
        body = {} if version is None else {"version": version}
        return parse(PolicyVersions, self._client.call("POST", f"{self._path}/policy/approve", body, repeatable=False))

    def rollback(self, version: int | None = None) -> PolicyVersions:
        """Go back to ``version`` (None: the one before the current). Without a version it is not sent twice."""
        body = {} if version is None else {"version": version}
        return parse(PolicyVersions, self._client.call("POST", f"{self._path}/policy/rollback", body, repeatable=version is not None))

    def close(self) -> None:
        """Close the session. One that is closed or expired already is left as it is."""
        self._channel.close()
        with suppress(SessionGone):
            self._client.call("DELETE", self._path)
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        with suppress(SkilletError):  # the error that ended the block is the one to tell
            self.close()

    def _call(self, what: str, body: Mapping[str, Any], budget_s: float | None) -> Any:
        return self._channel.call(what, body, repeatable=self.patient, budget_s=budget_s)

    def _guarded(self, action: Action) -> Action:
        if action.action is None or self.guard is None:
            return action
        held = self.guard.hold(action.action, self._last_action)
        self._last_action = held
        return action if held is action.action else replace(action, action=held)

    def _require_episode(self) -> int:
        if self._episode is None or not self._open:
            raise EpisodeState("no episode is open", action="call start_episode first")
        return self._episode

    def outcome(self, reward: float | None, next_observation: Any, terminated: bool, truncated: bool) -> dict[str, Any]:
        """An outcome as it is sent. Raises InvalidObservation, InvalidRequest."""
        sent = None if reward is None else _finite(reward)
        observation = self._checked(next_observation)
        return {"reward": sent, "next_observation": observation, "terminated": bool(terminated), "truncated": bool(truncated)}

    def _checked(self, observation: Any) -> list[float]:
        try:
            vector = np.asarray(observation, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidObservation("the observation is no vector of numbers", expected=self._wanted(), received=repr(error)) from error
        if vector.shape != (self._dim,):
            raise InvalidObservation("the observation has the wrong shape", expected=self._wanted(), received=f"shape {list(vector.shape)}")
        values: list[float] = vector.tolist()
        if not all(map(math.isfinite, values)):
            bad = {name: value for name, value in zip(self.specs.observation.names, values, strict=True) if not math.isfinite(value)}
            raise InvalidObservation("the observation has numbers that are not finite", expected=self._wanted(), received=bad)
        if self.guard is not None:
            self.guard.check(values)
        return values

    def _wanted(self) -> str:
        spec = self.specs.observation
        return f"{spec.dim} finite numbers: " + ", ".join(f"{name} [{unit}]" for name, unit in zip(spec.names, spec.units, strict=True))


def _finite(reward: float) -> float:
    try:
        number = float(reward)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRequest("the reward cannot be sent", expected="a finite number", received=repr(reward))
    return number


def _check_items(results: Iterable[ItemResult]) -> None:
    if refused := [result for result in results if result.status == "refused"]:
        raise ItemsRefused(refused)


def _action(data: Any) -> Action:
    """`parse` for the control loop, without its per-field work."""
    try:
        values = data["action"]
        return Action(
            data["episode"],
            data["step"],
            None if values is None else np.array(values, np.float32),
            data.get("skill_step"),
            data["policy_version"],
            data["task_version"],
            data["phase"],
            data["episode_over"],
            data.get("replayed", False),
            tuple(data.get("limited", ())),
            tuple(data.get("outside", ())),
            None if data.get("skill") is None else np.array(data["skill"], np.float32),
        )
    except (KeyError, TypeError, ValueError):
        return parse(Action, data)  # says what is wrong
