"""The kitchen's physics for many episodes at once, on all cores, by MuJoCo's own batched rollouts."""

import os
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from mujoco.rollout import Rollout
from numpy.typing import NDArray

from training.contract.context import Floats

Task = tuple[str, ...]
STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
ROBOT_JOINTS = 9


class KitchenTasks:
    """A `TaskSimulator` of ordered subtasks: the dynamics, noise, observations and rewards of the given kitchen environment.

    Args:
        env: the environment (``skillet/Kitchen-v0``), unwrapped; its rewards judge what happens here.
        physics_step_s: length of a physics step. The environment's own is 0.002 s; twice that takes half of the time and is near enough to
            train with (`docs/decisions.md`).
        threads: threads that the physics runs on; 0 takes one for each core that this process may use.
    """

    def __init__(self, env: Any, physics_step_s: float = 0.002, threads: int = 0) -> None:
        self._env, self._kitchen, simulation = env, env.kitchen, env.simulation
        self.episode_steps: int = self._kitchen.episode_steps
        robot = simulation.robot_env
        self._substeps = round(robot.dt / physics_step_s)
        if abs(self._substeps * physics_step_s - robot.dt) > 1e-9:
            raise ValueError(f"expected physics_step_s to divide the control period of {robot.dt} s, got {physics_step_s}")
        self._model = robot.model.__copy__()
        self._model.opt.timestep = physics_step_s
        workers = threads or len(os.sched_getaffinity(0))
        self._data = [mujoco.MjData(self._model) for _ in range(workers)]
        self._pool = Rollout(nthread=workers)
        self._period_s, self._reach = robot.dt, robot.act_rng
        self._velocity, self._position = robot.robot_vel_bound[:ROBOT_JOINTS].T, robot.robot_pos_bound[:ROBOT_JOINTS].T
        joints, objects = robot.robot_pos_noise_amp[:ROBOT_JOINTS], robot.robot_pos_noise_amp[ROBOT_JOINTS - 1 :]
        self._noise = np.concatenate([robot.robot_noise_ratio * joints, simulation.object_noise_ratio * objects])  # [30]
        self._low, self._high = env.observation_space.low, env.observation_space.high
        self._start = self._initial_state(robot.init_qpos, robot.init_qvel)

    def reset(self, tasks: Sequence[Task], rng: np.random.Generator) -> Floats:
        """Begin one episode for each task. Returns states [B, S]."""
        self._tasks = [self._kitchen.check_task(task) for task in tasks]
        self._rng = rng
        self._physics = np.tile(self._start, (len(tasks), 1))  # [B, P]: MuJoCo's time, qpos, qvel
        self._seen = np.zeros((len(tasks), ROBOT_JOINTS))
        self._finished = np.zeros(len(tasks), np.int64)
        return self._observe(np.arange(len(tasks)))

    def step(self, actions: Floats, active: NDArray[np.intp]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Apply actions [K, A] to the episodes ``active`` [K]. Returns their states [K, S], rewards [K] and terminations [K]."""
        velocities = np.clip(np.clip(actions, -1.0, 1.0).astype(np.float64) * self._reach, *self._velocity)
        # As in the environment, the servos' target starts from the last observed position, noise and all.
        targets = np.clip(self._seen[active] + velocities * self._period_s, *self._position)
        controls = np.broadcast_to(targets[:, None], (len(active), self._substeps, ROBOT_JOINTS))
        states, _ = self._pool.rollout(self._model, self._data, self._physics[active], controls)
        self._physics[active] = states[:, -1]
        observed = self._observe(active)
        rewards = self._pay(observed, active)
        return observed, rewards, self._finished[active] == [len(self._tasks[i]) for i in active]

    def judge(self, path: Floats, tasks: Sequence[Task]) -> tuple[Floats, NDArray[np.intp], NDArray[np.bool_]]:
        """What a path [n + 1, S] would have earned in each task: rewards [T, n], steps until its end [T], whether it terminates [T]."""
        rewards, ends, success = self._env.judge(path, tasks)
        return rewards, ends, success

    def _observe(self, active: NDArray[np.intp]) -> Floats:
        positions = self._physics[active, 1 : 1 + len(self._noise)]
        noisy = positions + self._noise * self._rng.uniform(-1.0, 1.0, positions.shape)
        self._seen[active] = noisy[:, :ROBOT_JOINTS]
        return np.clip(noisy.astype(np.float32), self._low, self._high)

    def _pay(self, observed: Floats, active: NDArray[np.intp]) -> Floats:
        rewards = np.zeros(len(active), np.float32)
        for row, (index, done) in enumerate(zip(active, self._kitchen.done(observed), strict=True)):
            before = self._finished[index]
            self._finished[index] = self._kitchen.pay(done, self._tasks[index], before)
            rewards[row] = self._finished[index] - before
        return rewards

    def _initial_state(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        data = self._data[0]
        data.qpos[:], data.qvel[:] = qpos, qvel
        state = np.empty(mujoco.mj_stateSize(self._model, STATE))
        mujoco.mj_getState(self._model, data, state, STATE)
        return state
