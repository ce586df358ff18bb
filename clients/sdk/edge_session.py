"""Split inference: the service chooses skills, the robot decodes them. Needs onnxruntime beside the SDK.

    with client.open_session(share_skills=True) as session, EdgeSession(session, decoder) as edge:
        edge.start_episode()
        action = edge.act(observation)
        while not action.episode_over:
            observation, reward, terminated, truncated, _ = env.step(action.action)
            action = edge.step(reward, observation, terminated, truncated)

One request for each skill of H steps: it reports the H outcomes and brings the next skill. In between, actions are decoded here, and an
outage is not noticed. The service decodes the same actions when it hears of their outcomes, so that its log, its counters and its
answers are those of a session that asked for every step.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from clients.sdk.edge import Decoder
from clients.sdk.errors import (
    ConcurrentUpdate,
    Conflict,
    DamagedRequest,
    EpisodeState,
    InvalidRequest,
    ServiceError,
    ServiceFailed,
    TooMany,
)
from clients.sdk.models import Action, EpisodeStarted, Floats, Transition
from clients.sdk.safety import ActionGuard
from clients.sdk.session import Session


class EdgeSession:
    """A session whose skills are decoded here. Used from one thread; close it, or use it as a context manager. The session stays open.

    A call that raised ConnectionFailed or DeadlinePassed can be made again with the same arguments.
    """

    def __init__(self, session: Session, decoder: Decoder) -> None:
        if not session.shares_skills or session.envelope is None:
            raise InvalidRequest("the session does not tell its skills", expected="open_session(share_skills=True)", received=session.id)
        self.session, self.specs, self.guard = session, session.specs, ActionGuard(session.envelope, session.specs)
        self._decoder = decoder
        self._action: Action | None = None  # the newest one
        self._skill: Floats | None = None
        self._outcomes: list[Transition] = []  # of the running skill, not reported yet
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="skillet-edge")
        self._final: list[Transition] = []  # outcomes that ended an episode, until they are known to be reported
        self._reporting: Future[Action] | None = None

    @property
    def patient(self) -> bool:
        """Whether a failed request is sent again until the client gives up."""
        return self.session.patient

    @patient.setter
    def patient(self, value: bool) -> None:
        self.session.patient = value

    @property
    def fresh_episode(self) -> bool:
        """Whether an episode is open and no action of it was asked for."""
        return not self._final and self.session.fresh_episode

    def start_episode(self) -> EpisodeStarted:
        """As `Session.start_episode`. Outcomes of an episode that is still open are reported before it ends as truncated."""
        self._await_report()
        if self._outcomes:
            self._report_open()
        self._action, self._skill, self._outcomes = None, None, []
        return self.session.start_episode()

    def act(self, observation: Any, *, budget_s: float | None = None) -> Action:
        """As `Session.act`, for the first step of an episode."""
        self._await_report()
        if self._outcomes or self._action is not None:
            raise EpisodeState("act is for an episode's first step here", action="go on with step, or call start_episode")
        return self._follow(self.session.act(observation, budget_s=budget_s))

    def step(
        self, reward: float | None, next_observation: Any, terminated: bool, truncated: bool, *, budget_s: float | None = None
    ) -> Action:
        """As `Session.step`; only the first action of a skill asks the service, and the episode's end is reported in the background."""
        last = self._action
        if last is None or last.episode_over:
            raise EpisodeState("no episode is running", action="call start_episode and act first")
        outcome = Transition(**self.session.outcome(reward, next_observation, terminated, truncated))
        outcomes = [*self._outcomes, outcome]
        if terminated or truncated:
            self._final, self._outcomes = outcomes, []
            self._reporting = self._background.submit(self.session.steps, outcomes)
            self._action = replace(last, step=last.step + 1, action=None, skill_step=None, episode_over=True, skill=None)
            return self._action
        skill_step = 0 if last.skill_step is None else last.skill_step + 1
        if self._skill is None or skill_step == self.specs.skill_horizon:
            return self._follow(self.session.steps(outcomes, budget_s=budget_s))
        state = np.array(outcome.next_observation, np.float32)
        action = self.guard.hold(self._decoder(state, self._skill), last.action)  # the envelope lies within the spec's limits
        self._outcomes = outcomes
        self._action = Action(
            last.episode, last.step + 1, action, skill_step, last.policy_version, last.task_version, last.phase, episode_over=False
        )
        return self._action

    def flush(self) -> None:
        """Wait until the last episode's end is reported. Raises what the service refused."""
        self._await_report()

    def close(self) -> None:
        """Wait as `flush`, and stop the thread."""
        try:
            self._await_report()
        finally:
            self._background.shutdown()

    def __enter__(self) -> "EdgeSession":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _follow(self, action: Action) -> Action:
        if action.skill_step == 0:
            self._skill = action.skill
        if action.action is not None:
            before = None if self._action is None else self._action.action
            action = replace(action, action=self.guard.hold(action.action, before))
        self._action, self._outcomes = action, []
        return action

    def _report_open(self) -> None:
        """Report the running skill's outcomes, unless the service has them: its reply to their last report may have been lost."""
        try:
            self.session.steps(self._outcomes)
        except ConcurrentUpdate:
            raise
        except Conflict:
            pass

    def _await_report(self) -> None:
        try:
            if self._reporting is not None:
                reporting, self._reporting = self._reporting, None
                reporting.result()
            elif self._final:
                self.session.steps(self._final)
        except (ConcurrentUpdate, DamagedRequest, ServiceFailed, TooMany):
            raise  # the next call reports it again
        except ServiceError:
            self._final = []  # refused once and for all, such as an episode that somebody else has ended
            raise
        self._final = []
