import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from clients.simulator.envs.kitchen import SkilletKitchenEnv

ENV_ID = "clients.simulator:skillet/Kitchen-v0"
TASK = ("microwave", "kettle", "light switch", "hinge cabinet")


@pytest.fixture(scope="module")
def env():
    made = SkilletKitchenEnv(TASK)
    yield made
    made.close()


def test_the_environment_keeps_gymnasiums_contract():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not wrapped.*|.*different from the unwrapped.*")
        check_env(gym.make(ENV_ID, subtasks=TASK).unwrapped, skip_render_check=True)


def test_time_limit_of_the_registration_is_that_of_the_data_file():
    made = gym.make(ENV_ID)
    assert made.spec.max_episode_steps == made.unwrapped.kitchen.episode_steps == 280


def test_every_entry_of_observation_and_action_has_a_name_of_its_own_and_a_unit(env):
    for space, entries in ((env.observation_space, env.metadata["observation"]), (env.action_space, env.metadata["action"])):
        assert space.shape == (len(entries),)
        assert len({name for name, _ in entries}) == len(entries)
        assert all(unit for _, unit in entries)


def test_the_observation_is_the_position_of_every_joint_up_to_sensor_noise(env):
    observation, _ = env.reset(seed=3)
    np.testing.assert_allclose(observation[:9], env.data.qpos[:9], atol=1.01e-3)
    np.testing.assert_allclose(observation[9:], env.data.qpos[9:], atol=5.1e-5)
    assert not np.array_equal(observation, env.data.qpos.astype(np.float32))
    assert [name for name, _ in env.metadata["observation"]][22:24] == ["microwave", "kettle x"]


def test_the_same_seed_and_actions_give_the_same_observations(env):
    paths = []
    for seed in (3, 3, 4):
        env.reset(seed=seed)
        paths.append(np.stack([env.step(np.full(9, 0.3, np.float32))[0] for _ in range(5)]))
    np.testing.assert_array_equal(paths[0], paths[1])
    assert not np.array_equal(paths[0], paths[2])


def test_each_arm_joint_follows_its_own_velocity_about_half_the_way(env):
    for joint in (0, 4):
        moved = []
        for sign in (1, -1):
            env.reset(seed=0)
            action = np.zeros(9, np.float32)
            action[joint] = 0.5 * sign
            for _ in range(3):
                observation = env.step(action)[0]
            moved.append(observation[:7])
        difference = moved[0] - moved[1]
        assert np.abs(difference).argmax() == joint
        assert 0.16 < difference[joint] < 0.4  # of 3 steps x 0.08 s x 2 rad/s


def test_opening_doors_by_hand_pays_in_order_and_ends_the_episode(env):
    env.reset(seed=0)
    rewards = []
    for name in ("kettle", "microwave", "light switch", "hinge cabinet"):
        for entry, value in zip(env.kitchen.entries[name], env.kitchen.goals[name], strict=True):
            env.data.qpos[entry] = value
        _, reward, terminated, truncated, info = env.step(np.zeros(9, np.float32))
        rewards.append((reward, terminated, truncated))
    assert rewards == [(0.0, False, False), (2.0, False, False), (1.0, False, False), (1.0, True, False)]
    assert info == {"completed": {"microwave": 2, "kettle": 2, "light switch": 3, "hinge cabinet": 4}, "success": True}
    assert env.reset(seed=0)[1] == {"completed": {}, "success": False}


def test_without_a_task_nothing_pays_and_nothing_terminates():
    free = SkilletKitchenEnv()
    free.reset(seed=0)
    free.data.qpos[22] = -0.75
    assert free.step(np.zeros(9, np.float32))[1:3] == (0.0, False)
    free.close()


def test_the_rewards_of_an_episode_are_those_of_judging_its_observations(env):
    path = [env.reset(seed=5)[0]]
    rewards = []
    for step in range(6):
        if step == 3:
            env.data.qpos[22] = -0.7
        observation, reward, *_ = env.step(np.zeros(9, np.float32))
        path.append(observation)
        rewards.append(reward)
    assert sum(rewards) == 1
    np.testing.assert_array_equal(env.judge(np.stack(path), [TASK])[0][0], rewards)


@pytest.mark.parametrize("action", [np.zeros(8), np.full(9, np.nan), np.zeros((1, 9))])
def test_a_wrong_action_is_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected 9 finite velocities"):
        env.step(action)


def test_wrong_tasks_options_and_render_modes_are_refused(env):
    with pytest.raises(ValueError, match="the nearest is 'kettle'"):
        SkilletKitchenEnv(["microwave", "ketle", "light switch", "hinge cabinet"])
    with pytest.raises(ValueError, match="no reset options"):
        env.reset(options={"start": 1})
    with pytest.raises(ValueError, match="render_mode"):
        SkilletKitchenEnv(render_mode="human")


@pytest.mark.skipif(sys.platform != "linux", reason="draws without a screen through EGL")
def test_a_picture_shows_the_arm_moving():
    shown = SkilletKitchenEnv(render_mode="rgb_array")
    shown.reset(seed=0)
    try:
        before = shown.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    for _ in range(5):
        shown.step(np.array([1, 0, 0, 0, 0, 0, 0, 0, 0], np.float32))
    after = shown.render()
    shown.close()
    assert before.shape == after.shape == (480, 480, 3)
    assert before.std() > 20
    assert np.abs(before.astype(int) - after).max() > 50


@pytest.mark.skipif(sys.platform != "linux", reason="draws without a screen through EGL")
def test_an_observation_is_drawn_as_it_was_and_without_disturbing_the_episode(env):
    shown, twin = SkilletKitchenEnv(TASK, render_mode="rgb_array"), env
    start, _ = shown.reset(seed=3)
    twin.reset(seed=3)
    try:
        at_the_start = shown.draw(start)
    except RuntimeError as error:
        pytest.skip(str(error))
    moved = start.copy()
    moved[22] = -1.0
    assert np.abs(shown.draw(moved).astype(int) - at_the_start).max() > 50
    np.testing.assert_array_equal(shown.draw(start), at_the_start)
    for _ in range(3):
        action = np.full(9, 0.3, np.float32)
        np.testing.assert_array_equal(shown.step(action)[0], twin.step(action)[0])
        shown.draw(moved)
    np.testing.assert_array_equal(shown.draw(shown.data.qpos), shown.render())
    shown.close()
