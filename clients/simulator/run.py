"""Run episodes of a simulated robot against a session: one request per control step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from clients.sdk import Action, FinetuningStatus, Session
from clients.simulator.report import EpisodeResult, StepTimes, Watcher

REPORT_EVERY_STEPS = 32
LONGEST_WAIT_S = 60.0  # what the service takes as wait_s
PAUSES_S = (0.05, 1.0)  # before asking again, where the service answers at once: the first, and the longest


@dataclass
class Simulation:
    """An environment behind a session. ``seed`` and the episode's number determine each reset."""

    env: gym.Env[Any, Any]
    session: Session
    seed: int
    watcher: Watcher
    keep_paths: bool = False
    times: StepTimes = field(default_factory=StepTimes)
    paths: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def episodes(self, count: int, *, max_wait_s: float) -> Iterator[EpisodeResult]:
        """Run ``count`` episodes; before each but the first let the learner catch up, for at most ``max_wait_s`` (0: not at all).

        A simulator runs many times faster than the robot that it stands for. Without the wait the learner would get a fraction of the
        wall time that it has beside a real one.
        """
        patience = Patience(self.session.finetuning)
        for number in range(count):
            if number > 0 and max_wait_s > 0:
                self._wait_for_learner(patience, max_wait_s)
            yield self._episode()

    def _episode(self) -> EpisodeResult:
        started = time.perf_counter()
        episode = self.session.start_episode()
        self.watcher.episode_started(episode.episode, episode.phase)
        observation, info = self.env.reset(seed=reset_seed(self.seed, episode.episode))
        path = [observation]
        action = self.session.act(observation)
        total, steps, terminated, version = 0.0, 0, False, 0
        while not action.episode_over:
            last, version = action, max(version, action.policy_version)
            observation, reward, terminated, action, info = self._step(last)
            total += reward
            steps += 1
            if self.keep_paths:
                path.append(observation)
            if steps % REPORT_EVERY_STEPS == 0:
                self.watcher.stepped(steps, total, last.policy_version, info.get("completed"))
        if self.keep_paths:
            self.paths[episode.episode] = np.array(path, np.float32)
        self.times.steps += steps
        success = bool(info.get("success", terminated))
        seconds = time.perf_counter() - started
        completed = info.get("completed")
        return EpisodeResult(episode.episode, episode.phase, total, success, steps, version, seconds, completed)

    def _step(self, action: Action) -> tuple[Any, float, bool, Action, dict[str, Any]]:
        before = time.perf_counter()
        observation, reward, terminated, truncated, info = self.env.step(action.action)
        between = time.perf_counter()
        following = self.session.step(float(reward), observation, terminated, truncated)
        self.times.simulator_s += between - before
        self.times.service_s += time.perf_counter() - between
        return observation, float(reward), terminated, following, info

    def _wait_for_learner(self, patience: "Patience", max_wait_s: float) -> None:
        started = time.perf_counter()
        self.watcher.waiting()
        status = patience.wait(max_wait_s)
        self.times.learner_wait_s += time.perf_counter() - started
        self.watcher.waited(status, caught_up=has_caught_up(status))


@dataclass
class Patience:
    """Waits for the learner. One that did nothing since it was last waited for is not waited for again until it does.

    ``ask`` takes wait_s, at most 60, and answers where the learner stands.
    """

    ask: Callable[[float], FinetuningStatus]
    _seen: tuple[int, int] = (0, 0)
    _stalled: bool = False

    def wait(self, max_wait_s: float) -> FinetuningStatus:
        """Ask, once at least, until the learner has caught up or ``max_wait_s`` have passed. Returns the last answer."""
        now = time.monotonic()
        stop_at = now + (0.0 if self._stalled else max_wait_s)
        pause_s, longest_s = PAUSES_S
        while True:
            answer_at = now + min(LONGEST_WAIT_S, max(stop_at - now, 0.0))
            status = self.ask(answer_at - now)
            caught_up, now = has_caught_up(status), time.monotonic()
            if caught_up or now >= stop_at:
                done = (status.episodes_learned, status.updates)
                self._stalled, self._seen = not caught_up and done == self._seen, done
                return status
            if now < answer_at:  # the service sees nothing to wait for, and the learner has not said so yet
                time.sleep(min(pause_s, stop_at - now))
                pause_s, now = min(2 * pause_s, longest_s), time.monotonic()


def reset_seed(seed: int, episode: int) -> int:
    """The environment's seed for one episode of a run."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0])


def has_caught_up(status: FinetuningStatus) -> bool:
    """Whether there is nothing to wait for: the learner has seen every completed episode, has no work, or will not go on by itself.

    A session that still explores has no work for it: its state is idle.
    """
    at_work = status.enabled and not status.paused and status.state in ("queued", "running")
    return not at_work or status.episodes_learned >= status.episodes_completed
