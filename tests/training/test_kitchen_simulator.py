import gymnasium as gym
import mujoco
import numpy as np
import pytest

from training.rollout import TaskSimulator
from training.simulators.kitchen import KitchenTasks

TASK = ("microwave", "kettle", "bottom burner", "light switch")


@pytest.fixture(scope="module")
def env():
    return gym.make("clients.simulator:skillet/Kitchen-v0").unwrapped


@pytest.fixture(scope="module")
def simulator(env) -> TaskSimulator:
    return KitchenTasks(env, threads=2)


def put(env, simulator, index):
    """Set the environment's physics and last seen joints to those of one of the simulator's episodes."""
    mujoco.mj_setState(env.model, env.data, simulator._physics[index], mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(env.model, env.data)
    env.simulation.robot_env._last_robot_qpos = simulator._seen[index].copy()


def test_each_step_is_that_of_the_environment(env, simulator):
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    simulator.reset([TASK] * 3, rng)
    noise = simulator._noise * 1.001 + 1e-6
    for _ in range(25):
        actions = rng.uniform(-1.2, 1.2, (3, 9)).astype(np.float32)
        expected = []
        for index in range(3):
            put(env, simulator, index)
            env.simulation.step(actions[index].astype(np.float64))
            expected.append(env.data.qpos.copy())
        states, _, _ = simulator.step(actions, np.arange(3))
        np.testing.assert_allclose(simulator._physics[:, 1:31], expected, atol=1e-5)
        assert (np.abs(states - np.clip(expected, env.observation_space.low, env.observation_space.high)) <= noise + 1e-5).all()


def test_an_episode_begins_as_in_the_environment_with_noise_of_its_own(env, simulator):
    states = simulator.reset([TASK] * 200, np.random.default_rng(1))
    env.reset(seed=1)
    np.testing.assert_allclose(states, np.tile(env.data.qpos, (200, 1)), atol=2e-3)
    assert (states.std(0) > 0).all()
    samples = np.stack([env.reset(seed=seed)[0] for seed in range(200)])
    np.testing.assert_allclose(states.std(0), samples.std(0), rtol=0.3)


def test_only_active_episodes_move(simulator):
    before = simulator.reset([TASK] * 3, np.random.default_rng(2))
    physics = simulator._physics.copy()
    states, rewards, ended = simulator.step(np.ones((1, 9), np.float32), np.array([1]))
    assert states.shape == (1, 30)
    assert (rewards.tolist(), ended.tolist()) == ([0.0], [False])
    assert np.abs(states[0, :7] - before[1, :7]).max() > 0.01
    np.testing.assert_array_equal(simulator._physics[[0, 2]], physics[[0, 2]])


def test_subtasks_pay_in_order_and_the_last_one_ends_the_episode(env, simulator):
    simulator.reset([TASK, ("kettle", "microwave", "bottom burner", "light switch")], np.random.default_rng(3))

    def finish(*names):
        for name in names:
            entries, goal = list(env.kitchen.entries[name]), env.kitchen.goals[name]
            simulator._physics[:, [1 + entry for entry in entries]] = goal

    still = np.zeros((2, 9), np.float32)
    finish("kettle")
    assert simulator.step(still, np.arange(2))[1].tolist() == [0.0, 1.0]
    finish("kettle", "microwave")
    assert simulator.step(still, np.arange(2))[1].tolist() == [2.0, 1.0]
    finish("kettle", "microwave", "bottom burner", "light switch")
    _, rewards, ended = simulator.step(still, np.arange(2))
    assert (rewards.tolist(), ended.tolist()) == ([2.0, 2.0], [True, True])


def test_the_same_seed_gives_the_same_episode_on_any_number_of_threads(env):
    def final(threads):
        simulator, rng = KitchenTasks(env, threads=threads), np.random.default_rng(4)
        simulator.reset([TASK] * 5, rng)
        for _ in range(5):
            states, _, _ = simulator.step(np.full((5, 9), 0.5, np.float32), np.arange(5))
        return states

    np.testing.assert_array_equal(final(1), final(2))


def test_twice_the_physics_step_goes_nearly_the_same_way(env, simulator):
    fast, actions = KitchenTasks(env, physics_step_s=0.004), np.zeros((1, 9), np.float32)
    ways = []
    for one in (simulator, fast):
        one.reset([TASK], np.random.default_rng(5))
        for step in range(40):
            actions[0, :7] = np.sin(step / 6 + np.arange(7))
            states, _, _ = one.step(actions, np.arange(1))
        ways.append(states[0])
    np.testing.assert_allclose(*ways, atol=0.02)


def test_a_physics_step_that_does_not_fill_the_control_period_is_refused(env):
    with pytest.raises(ValueError, match=r"divide the control period of 0.08 s, got 0.003"):
        KitchenTasks(env, physics_step_s=0.003)
