"""Commands for a robot, each within its deadline, whatever the network does.

While the service does not answer in time, the robot goes down a ladder that its user declared: finish the running skill, hold, stop. A
worker thread talks to the service; the control thread never waits for it longer than the deadline.

What the robot did on its own is reported when the service answers again, if the service would have commanded the same (a skill that was
finished). Otherwise those steps are not the policy's: the episode ends with the last step that was, and the next one begins. Its first
action is limited by nothing, being one for a robot that stands; one that moves approaches it as fast as the envelope lets it, and then
begins.
"""

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from clients.sdk.client import RETRIED_STATUS
from clients.sdk.edge import Decoder
from clients.sdk.edge_session import EdgeSession
from clients.sdk.errors import (
    ConcurrentUpdate,
    ConnectionFailed,
    DamagedRequest,
    DeadlinePassed,
    EpisodeState,
    RequestTimeout,
    ServiceFailed,
    TooMany,
    UnexpectedReply,
)
from clients.sdk.models import Action, Floats
from clients.sdk.session import Session

Source = Literal["service", "skill", "hold", "stop"]
_SAME_ACTION = 1e-5
_RETRY_S = 0.02


@dataclass(frozen=True)
class OutageLadder:
    """What the robot does while the service does not answer, each rung up to so many seconds after the outage began.

    ``finish_skill_s``: go on with the running skill (needs a decoder; a skill's end ends the rung). ``hold_s``: command ``hold_action`` [A]
    (None: the last action). Then stop: command ``stop_action`` [A] until the user starts another episode. Every command stays inside the
    envelope, so holding and stopping are approached no faster than its limit on change.
    """

    stop_action: Any
    finish_skill_s: float = 0.0
    hold_s: float = 0.0
    hold_action: Any = None


@dataclass(frozen=True)
class Command:
    """What the robot shall do now: ``action`` float32 [A], and who says so.

    ``new_episode``: the service answers again and began another episode with this observation. ``outage_s``: for how long it has not
    answered.
    """

    action: Floats
    source: Source
    outage_s: float = 0.0
    new_episode: bool = False
    episode_over: bool = False


@dataclass
class _Tick:
    """One observation, what was reported with it, and what came of it."""

    observation: Any
    outcome: tuple[float | None, bool, bool] | None  # None: the first of an episode
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)
    answer: Action | None = None
    expired: bool = False  # the robot went on without the answer
    executed: Floats | None = None

    def settle(self, answer: Action | None) -> bool:
        """The worker's: give the answer. Returns whether the robot still waited for it."""
        with self.lock:
            self.answer = answer
            self.done.set()
            return not self.expired

    def wait(self, timeout_s: float) -> Action | None:
        """The control thread's: the answer, if it comes in time."""
        self.done.wait(timeout_s)
        with self.lock:
            self.expired = self.answer is None
            return self.answer


@dataclass
class LoopCounts:
    """Commands by their source, and steps that were not the policy's and so never reported."""

    service: int = 0
    skill: int = 0
    hold: int = 0
    stop: int = 0
    unreported_steps: int = 0
    episodes_broken: int = 0


class ControlLoop:
    """Drives one session. Used from one thread; close it, or use it as a context manager.

    ``deadline_s`` is how long a command may take, by default the bundle's control period; ``start_timeout_s`` how long an episode's first
    may.
    """

    def __init__(
        self,
        session: Session | EdgeSession,
        ladder: OutageLadder,
        *,
        deadline_s: float | None = None,
        start_timeout_s: float = 10.0,
        decoder: Decoder | None = None,
    ) -> None:
        self._session, self._ladder, self._decoder = session, ladder, decoder
        self._deadline_s = session.specs.control_period_s if deadline_s is None else deadline_s
        self._start_timeout_s = start_timeout_s
        self.counts = LoopCounts()
        self.error: Exception | None = None  # what the service refused, or the worker failed with: raised by the next call
        self._last: Floats | None = None
        self._skill: tuple[Floats, int] | None = None  # the running skill and how many of its steps were commanded
        self._outage_since: float | None = None
        self._approached: Floats | None = None  # the first action of an episode that began too far away from the last command
        self._stopped = self._over = False
        self._broken = threading.Event()  # the episode at the service is not what the robot did: begin another
        self._closing = threading.Event()
        self._ticks: queue.SimpleQueue[_Tick | None] = queue.SimpleQueue()
        session.patient = False  # the loop sends again by itself, and looks up in between
        self._thread = threading.Thread(target=self._talk, name="skillet-control-loop", daemon=True)
        self._thread.start()

    def start_episode(self, observation: Any) -> Command:
        """Begin an episode: the first command, for ``observation`` [S]. Ends a stop. The robot stands, so this waits for the service.

        Raises RequestTimeout when it does not answer within ``start_timeout_s``.
        """
        self._stopped = self._over = False
        self._last, self._skill, self._outage_since, self._approached = None, None, None, None
        command = self._command(_Tick(observation, None), self._start_timeout_s)
        if command is None:
            raise RequestTimeout(f"the service began no episode within {self._start_timeout_s:g} s", action="try again when it answers")
        return command

    def step(self, reward: float | None, observation: Any, terminated: bool = False, truncated: bool = False) -> Command:
        """Report the outcome of the last command and get the next one, within the deadline.

        Raises EpisodeState after the episode's end, and whatever the service refused, or talking to it failed with: then, and from then on.
        """
        if self._over or self._last is None:
            raise EpisodeState("no episode is running", action="call start_episode first")
        began = time.monotonic()
        self._over = terminated or truncated
        approaches = self._approached is not None
        broken = approaches or self._broken.is_set()
        self.counts.unreported_steps += approaches
        if self._over and broken:
            return Command(self._last, "service", episode_over=True)
        if approaches and not self._may_follow(self._approached):
            return self._alone(_Tick(observation, None), began)
        tick = _Tick(observation, None if broken else (reward, terminated, truncated))
        return self._command(tick, self._deadline_s, new_episode=broken) or self._alone(tick, began)

    def close(self) -> None:
        """Stop talking to the service; what was not reported yet stays unreported."""
        self._closing.set()
        self._ticks.put(None)
        self._thread.join()

    def __enter__(self) -> "ControlLoop":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _command(self, tick: _Tick, timeout_s: float, *, new_episode: bool = False) -> Command | None:
        """The service's command, None when it does not come in time."""
        self._approached = None
        self._ticks.put(tick)
        answer = tick.wait(timeout_s)
        if self.error is not None:
            raise self.error
        if self._over and self._last is not None:
            return Command(self._last, "service", episode_over=True)
        if answer is None or answer.action is None or self._stopped:
            return None
        if new_episode and not self._may_follow(answer.action):
            self._approached, self._outage_since = answer.action, None
            return None
        self._follow(answer)
        tick.executed = self._last = answer.action
        self.counts.service += 1
        return Command(answer.action, "service", new_episode=new_episode)

    def _may_follow(self, action: Floats | None) -> bool:
        """Whether the envelope lets ``action`` [A] follow the last command."""
        guard = self._session.guard
        return action is None or guard is None or self._last is None or guard.is_near(action, self._last)

    def _alone(self, tick: _Tick, began: float) -> Command:
        """The command of the highest rung of the ladder that still holds."""
        self._outage_since = began if self._outage_since is None else self._outage_since
        outage_s = time.monotonic() - self._outage_since
        wanted, source = self._rung(tick, outage_s)
        guard = self._session.guard
        action = guard.hold(np.asarray(wanted, np.float32), self._last) if guard is not None else np.asarray(wanted, np.float32)
        tick.executed = self._last = action
        setattr(self.counts, source, getattr(self.counts, source) + 1)
        return Command(action, source, outage_s)

    def _rung(self, tick: _Tick, outage_s: float) -> tuple[Any, Source]:
        ladder = self._ladder
        if not self._stopped and self._approached is not None:
            return self._approached, "hold"
        if not self._stopped and outage_s <= ladder.finish_skill_s and self._decoder is not None and self._skill is not None:
            skill, steps = self._skill
            if steps < self._session.specs.skill_horizon:
                self._skill = (skill, steps + 1)
                return self._decoder(np.asarray(tick.observation, np.float32), skill), "skill"
        self._skill = None
        if not self._stopped and outage_s <= ladder.hold_s:
            held = self._last if ladder.hold_action is None else ladder.hold_action
            if held is not None:
                return held, "hold"
        self._stopped = True
        return ladder.stop_action, "stop"

    def _follow(self, answer: Action) -> None:
        self._outage_since = None
        if answer.skill is not None:
            self._skill = (answer.skill, 1)
        elif self._skill is not None:
            self._skill = (self._skill[0], self._skill[1] + 1)

    # The worker thread.

    def _talk(self) -> None:
        before: _Tick | None = None
        while (tick := self._ticks.get()) is not None and not self._closing.is_set():
            try:
                if tick.outcome is not None and (self._broken.is_set() or (before is not None and not _as_commanded(before))):
                    self._break(tick)
                    continue
                answer = self._deliver(tick)
            except Exception as error:  # whatever it is: a thread that ended in silence would look like an outage for ever
                self.error, answer = error, None
            in_time = tick.settle(answer)
            if tick.outcome is None:
                self._began(answered=answer is not None, in_time=in_time)
            before = tick

    def _break(self, tick: _Tick) -> None:
        """The last command was not the service's: reporting its outcome would be reporting that of another action."""
        self.counts.unreported_steps += 1
        if not self._broken.is_set():
            self.counts.episodes_broken += 1
            self._broken.set()
        tick.settle(None)

    def _began(self, *, answered: bool, in_time: bool) -> None:
        """An episode whose first action came too late is not the robot's: begin another."""
        if answered and in_time:
            self._broken.clear()
        else:
            self._broken.set()

    def _deliver(self, tick: _Tick) -> Action | None:
        budget_s: float | None = self._deadline_s if tick.outcome is not None else None
        while not self._closing.is_set():
            try:
                return self._send(tick, budget_s)
            except (ConcurrentUpdate, ConnectionFailed, DamagedRequest, ServiceFailed, TooMany, UnexpectedReply) as error:
                if isinstance(error, UnexpectedReply) and error.status not in RETRIED_STATUS:
                    raise
                budget_s = None  # it is late already; from here on it is to be reported, not to be answered
                self._closing.wait((isinstance(error, TooMany) and error.retry_after_s) or _RETRY_S)
            except DeadlinePassed:
                budget_s = None
        return None

    def _send(self, tick: _Tick, budget_s: float | None) -> Action | None:
        if tick.outcome is not None:
            reward, terminated, truncated = tick.outcome
            return self._session.step(reward, tick.observation, terminated, truncated, budget_s=budget_s)
        if not self._session.fresh_episode:
            self._session.start_episode()
        return None if tick.expired else self._session.act(tick.observation)


def _as_commanded(tick: _Tick) -> bool:
    """Whether the robot did what the service had commanded."""
    if tick.answer is None or tick.answer.action is None or tick.executed is None:
        return False
    return bool(np.abs(tick.executed - tick.answer.action).max(initial=0.0) <= _SAME_ACTION)
