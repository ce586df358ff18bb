"""Several simulated robots at once, each with a session of its own: one request carries a step of all of them (`SessionGroup`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym

from clients.sdk import Action, SessionGroup, SkilletError, Transition
from clients.simulator.report import EpisodeResult, StepTimes, Watcher
from clients.simulator.run import REPORT_EVERY_STEPS, Patience, has_caught_up, reset_seed


class Fleet:
    """Robots that step together; who has ended its episode waits for the others. Each gets what it would get alone.

    ``envs`` and ``seeds``: one for each session of ``group``, the seed as of `Simulation`.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], group: SessionGroup, seeds: Sequence[int], watcher: Watcher) -> None:
        self._envs, self._group, self._seeds, self._watcher = envs, group, seeds, watcher
        self.times = StepTimes()

    def rounds(self, count: int, *, max_wait_s: float) -> Iterator[list[EpisodeResult]]:
        """Run ``count`` episodes of each robot; yields those of one round.

        Waits for the learner between them, as `Simulation` does, all robots together for at most ``max_wait_s``.
        Raises the SkilletError that any of the robots gets.
        """
        patiences = [Patience(session.finetuning) for session in self._group.sessions]
        for number in range(count):
            if number > 0 and max_wait_s > 0:
                self._wait_for_learner(patiences, max_wait_s)
            yield self._round()

    def _round(self) -> list[EpisodeResult]:
        began = time.perf_counter()
        starts = [session.start_episode() for session in self._group.sessions]
        self._watcher.episode_started(starts[0].episode, starts[0].phase)
        resets = [env.reset(seed=reset_seed(seed, start.episode)) for env, seed, start in zip(self._envs, self._seeds, starts, strict=True)]
        running = _actions(self._group.act(dict(enumerate(observation for observation, _ in resets))))
        totals, steps, versions = [0.0] * len(starts), [0] * len(starts), [0] * len(starts)
        results: dict[int, EpisodeResult] = {}
        while running:
            outcomes, infos = self._simulate(running)
            following = self._step(outcomes)
            for index, outcome in outcomes.items():
                totals[index] += float(outcome.reward or 0.0)
                steps[index] += 1
                versions[index] = max(versions[index], running[index].policy_version)
                if following[index].episode_over:
                    info, start = infos[index], starts[index]
                    success, seconds = bool(info.get("success", outcome.terminated)), time.perf_counter() - began
                    results[index] = EpisodeResult(
                        start.episode, start.phase, totals[index], success, steps[index], versions[index], seconds, info.get("completed")
                    )
            running = {index: action for index, action in following.items() if not action.episode_over}
            if max(steps) % REPORT_EVERY_STEPS == 0 and running:
                first = min(running)
                self._watcher.stepped(sum(steps), sum(totals) / len(totals), running[first].policy_version, None)
        self.times.steps += sum(steps)
        return [results[index] for index in range(len(starts))]

    def _simulate(self, running: Mapping[int, Action]) -> tuple[dict[int, Transition], dict[int, dict[str, Any]]]:
        before = time.perf_counter()
        outcomes: dict[int, Transition] = {}
        infos: dict[int, dict[str, Any]] = {}
        for index, action in running.items():
            observation, reward, terminated, truncated, infos[index] = self._envs[index].step(action.action)
            outcomes[index] = Transition(float(reward), observation, terminated, truncated)
        self.times.simulator_s += time.perf_counter() - before
        return outcomes, infos

    def _step(self, outcomes: Mapping[int, Transition]) -> dict[int, Action]:
        before = time.perf_counter()
        following = _actions(self._group.step(outcomes))
        self.times.service_s += time.perf_counter() - before
        return following

    def _wait_for_learner(self, patiences: Sequence[Patience], max_wait_s: float) -> None:
        started = time.perf_counter()
        self._watcher.waiting()
        for patience in patiences:  # the learner works for the others too while one is waited for
            status = patience.wait(max(started + max_wait_s - time.perf_counter(), 0.0))
            self._watcher.waited(status, caught_up=has_caught_up(status))
        self.times.learner_wait_s += time.perf_counter() - started


def _actions(results: Mapping[int, Action | SkilletError]) -> dict[int, Action]:
    actions = {}
    for index, result in results.items():
        if isinstance(result, SkilletError):
            raise result
        actions[index] = result
    return actions
