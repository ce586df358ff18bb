"""Small deterministic worlds with known answers, as task simulators (`training.rollout.TaskSimulator`)."""

import numpy as np


class CountingWorld:
    """Each state counts the steps so far; each step pays 1; a task is the step at which the episode ends, with 50 more."""

    def __init__(self, episode_steps):
        self.episode_steps = episode_steps
        self.seen = []

    def reset(self, tasks, rng):
        self.tasks, self.counts = np.asarray(tasks), np.zeros(len(tasks), int)
        return self._states(np.arange(len(tasks)))

    def step(self, actions, active):
        self.seen += [(int(episode), float(action[0])) for episode, action in zip(active, actions, strict=True)]
        self.counts[active] += 1
        ended = self.counts[active] == self.tasks[active]
        return self._states(active), (1 + 50 * ended).astype(np.float32), ended

    def judge(self, path, tasks):
        tasks, steps = np.asarray(tasks), len(path) - 1
        numbers = np.arange(1, steps + 1)
        rewards = (numbers <= tasks[:, None]) + 50.0 * (numbers == tasks[:, None])
        return rewards.astype(np.float32), np.minimum(tasks, steps), tasks <= steps

    def _states(self, active):
        return np.repeat(self.counts[active, None], 4, 1).astype(np.float32)


class TwoSidedWorld:
    """A point that starts in the middle of a line: a task is its side, and reaching that end pays 1 and terminates.

    The action's first entry moves it. The state is (place, 0, 0, 0): it never tells the task.
    """

    def __init__(self, episode_steps=13, end=1.0):
        self.episode_steps, self.end = episode_steps, end

    def reset(self, tasks, rng):
        self.sides = np.array([side for (side,) in tasks], np.float32)
        self.places = np.zeros(len(tasks), np.float32)
        return self._states(np.arange(len(tasks)))

    def step(self, actions, active):
        self.places[active] = np.clip(self.places[active] + 0.2 * actions[:, 0], -1.2, 1.2)
        reached = self.places[active] * self.sides[active] >= self.end
        return self._states(active), reached.astype(np.float32), reached

    def judge(self, path, tasks):
        reached = path[None, 1:, 0] * np.array(tasks, np.float32) >= self.end
        hit = reached.any(1)
        first = np.where(hit, reached.argmax(1), len(path) - 2)
        rewards = np.zeros(reached.shape, np.float32)
        rewards[hit, first[hit]] = 1.0
        return rewards, first + 1, hit

    def _states(self, active):
        states = np.zeros((len(active), 4), np.float32)
        states[:, 0] = self.places[active]
        return states
