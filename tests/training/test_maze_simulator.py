import time

import gymnasium as gym
import numpy as np
import pytest

from training.simulators.maze import MAZE_ENV_ID, MazeSimulator


@pytest.fixture(scope="module")
def simulator():
    return MazeSimulator.from_env()


@pytest.fixture(scope="module")
def mujoco_maze():
    return gym.make(MAZE_ENV_ID).unwrapped


def state_of(env):
    return np.concatenate([env.data.qpos, env.data.qvel])[None]


def roll_out(env, simulator, seed, steps):
    """Random pushes held for 15 steps from a random place. Per step: error of one step, contacts; error of the free-running simulator."""
    rng = np.random.default_rng(seed)
    cell = env.free_cells[rng.integers(len(env.free_cells))]
    env.reset(seed=seed, options={"start": cell + rng.uniform(-0.35, 0.35, 2), "velocity": rng.uniform(-5, 5, 2)})
    state = free = state_of(env)
    for step in range(steps):
        if step % 15 == 0:
            action = np.clip(rng.uniform(-2, 2, (1, 2)), -1, 1)
        expected, free = simulator.step(state, action), simulator.step(free, action)
        env.step(action[0])
        state = state_of(env)
        yield np.abs(expected - state).max(), env.data.ncon, np.abs(free - state)[0, :2].max()


def test_one_step_agrees_with_mujoco_whatever_the_contacts(simulator, mujoco_maze):
    rows = np.array([row for seed in range(40) for row in roll_out(mujoco_maze, simulator, seed, 200)])
    errors, contacts = rows[:, 0], rows[:, 1]
    for count, least in ((0, 5000), (1, 1000), (2, 50)):
        assert (contacts == count).sum() > least
        assert errors[contacts == count].max() < 1e-7


def test_two_hundred_steps_drift_apart_by_less_than_a_micrometre(simulator, mujoco_maze):
    drifts = [max(row[2] for row in roll_out(mujoco_maze, simulator, seed, 200)) for seed in range(100, 120)]
    assert np.median(drifts) < 1e-9
    assert np.quantile(drifts, 0.9) < 1e-6


@pytest.mark.parametrize("corner", [(1, 1), (20, 20), (1, 12)])
def test_being_pushed_into_a_corner_agrees_with_mujoco(simulator, mujoco_maze, corner):
    outward = np.sign(np.array(corner) - (5, 5))[None].astype(float)
    mujoco_maze.reset(options={"start": corner + outward[0] * 0.3, "velocity": outward[0] * 5})
    state = state_of(mujoco_maze)
    for _ in range(60):
        expected = simulator.step(state, outward)
        mujoco_maze.step(outward[0])
        state = state_of(mujoco_maze)
        np.testing.assert_allclose(expected, state, atol=1e-7)
    assert mujoco_maze.data.ncon >= 2


def test_float32_states_stay_float32_and_are_not_changed(simulator):
    states = simulator.reset(np.random.default_rng(0), 5).astype(np.float32)
    before, actions = states.copy(), np.full((5, 2), 0.7, np.float32)
    following = simulator.step(states, actions)
    assert following.dtype == np.float32
    np.testing.assert_array_equal(states, before)
    np.testing.assert_allclose(following, simulator.step(states.astype(np.float64), actions), atol=1e-5)


def test_starts_come_from_the_environments_distribution(simulator):
    states = simulator.reset(np.random.default_rng(0), 5000)
    assert np.abs(states[:, :2] - 10).max() <= 0.1
    np.testing.assert_allclose(states[:, :2].std(0), 0.2 / 12**0.5, rtol=0.05)
    np.testing.assert_allclose(states[:, 2:].std(0), 0.1, rtol=0.05)


def test_reaching_a_goal_pays_one_and_terminates_that_episode_only(simulator):
    states = np.array([[11.0, 11.99, 0.0, 5.0], [11.0, 11.9, 0.0, 0.0], [11.0, 13.0, 0.0, 0.0]])
    goals = np.array([[11, 13], [11, 13], [1, 1]])
    result = simulator.step_tasks(states, np.zeros((3, 2)), goals)
    np.testing.assert_array_equal(result.rewards, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(result.terminated, [True, False, False])


def test_the_episode_limit_is_that_of_the_registration(simulator):
    assert simulator.episode_steps == 2000


@pytest.mark.parametrize(("states", "actions"), [((3, 5), (3, 2)), ((3, 4), (2, 2)), ((4,), (1, 2))])
def test_wrong_shapes_are_refused(simulator, states, actions):
    with pytest.raises(ValueError, match=r"states \[B, 4\]"):
        simulator.step(np.zeros(states), np.zeros(actions))


def test_three_hundred_episodes_make_more_than_a_million_steps_a_second(simulator):
    rng = np.random.default_rng(0)
    states, actions = simulator.reset(rng, 300), rng.uniform(-1, 1, (300, 2))
    simulator.step(states, actions)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(300):
            states = simulator.step(states, actions)
        rates.append(300 * 300 / (time.perf_counter() - start))
    assert max(rates) > 1e6
