"""Goal-reaching episodes in the vectorised maze, side by side."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.contract.context import Floats
from training.simulators.maze import MazeSimulator


class MazeTasks:
    """A TaskSimulator whose tasks are goals (row, column)."""

    def __init__(self, simulator: MazeSimulator) -> None:
        self.simulator = simulator
        self.episode_steps = simulator.episode_steps
        self._states = np.zeros((0, 4))
        self._goals = np.zeros((0, 2))

    def reset(self, tasks: Sequence[tuple[int, int]], rng: np.random.Generator) -> Floats:
        """Begin one episode for each goal. Returns states [B, 4]."""
        self._goals = np.asarray(tasks, np.float64)
        self._states = self.simulator.reset(rng, len(tasks))
        return self._states.astype(np.float32)

    def step(self, actions: Floats, active: NDArray[np.intp]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Apply actions [K, 2] to the episodes ``active`` [K]. Returns their states [K, 4], rewards [K] and terminations [K]."""
        result = self.simulator.step_tasks(self._states[active], actions, self._goals[active])
        self._states[active] = result.states
        return result.states.astype(np.float32), result.rewards, result.terminated

    def judge(self, path: Floats, tasks: Sequence[tuple[int, int]]) -> tuple[Floats, NDArray[np.intp], NDArray[np.bool_]]:
        """What a path [n + 1, 4] would have earned for each goal: rewards [T, n], steps until its end [T], success [T]."""
        reached = self.simulator.reached(path[None, 1:], np.asarray(tasks, np.float32)[:, None])  # [T, n]
        hit = reached.any(1)
        first = np.where(hit, reached.argmax(1), len(path) - 2)
        rewards = np.zeros(reached.shape, np.float32)
        rewards[hit, first[hit]] = 1.0
        return rewards, first + 1, hit
