import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from clients.simulator.envs.maze import PointMazeEnv

ENV_ID = "clients.simulator:skillet/PointMaze-v0"


def push(env, action, steps):
    for _ in range(steps):
        observation, *_ = env.step(np.asarray(action, np.float32))
    return observation


def test_the_environment_keeps_gymnasiums_contract():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not wrapped.*|.*different from the unwrapped.*")
        check_env(gym.make(ENV_ID, goal=(12, 7)).unwrapped, skip_render_check=True)


def test_time_limit_of_the_registration_is_that_of_the_data_file():
    env = gym.make(ENV_ID)
    assert env.spec.max_episode_steps == env.unwrapped.maze.episode_steps == 2000


def test_starts_scatter_around_the_start_cell():
    env = PointMazeEnv()
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(200)])
    assert np.abs(starts[:, :2] - 10).max() <= 0.1
    assert np.abs(starts[:, :2] - 10).max() > 0.09
    assert starts[:, 2:].std() == pytest.approx(0.1, rel=0.2)


def test_the_same_seed_gives_the_same_start():
    env = PointMazeEnv()
    np.testing.assert_array_equal(env.reset(seed=3)[0], env.reset(seed=3)[0])


def test_a_full_push_accelerates_by_23_9_metres_per_second_squared():
    env = PointMazeEnv()
    env.reset(options={"start": (11, 11), "velocity": (0, 0)})
    observation = push(env, (0, 1), 1)
    assert observation[3] == pytest.approx(0.239, abs=0.001)
    assert observation[1] == pytest.approx(11.00239, abs=1e-4)  # the new velocity moves the ball


def test_x_is_the_row_and_y_the_column():
    env = PointMazeEnv()
    assert (env.layout[9][10], env.layout[10][7]) == ("O", "#")
    env.reset(options={"start": (10, 9), "velocity": (0, 0)})
    assert push(env, (0, -1), 100)[1] == pytest.approx(7.6, abs=0.02)  # stopped by the wall in column 7
    assert push(env, (-1, 0), 10)[0] < 9.9  # free upwards


def test_the_ball_never_enters_a_wall():
    env = PointMazeEnv()
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(100):
        x, y, *_ = push(env, rng.choice([-1, 1], 2), 20)
        assert env.layout[round(float(x))][round(float(y))] == "O"


def test_velocities_are_clipped_before_a_step():
    env = PointMazeEnv()
    env.reset(options={"start": (11, 5), "velocity": (0, 50)})
    assert push(env, (0, 1), 1)[3] < 5.3
    assert push(env, (0, 0), 1)[3] <= 5.0


def test_actions_beyond_the_limits_count_as_the_limits():
    env = PointMazeEnv()
    ends = []
    for action in ((0, 1), (0, 7)):
        env.reset(options={"start": (11, 11), "velocity": (0, 0)})
        ends.append(push(env, action, 3))
    np.testing.assert_array_equal(*ends)


def test_coming_within_the_radius_pays_once_and_terminates():
    env = gym.make(ENV_ID, goal=(11, 13))
    env.reset(options={"start": (11, 11.9), "velocity": (0, 0)})
    outcomes = []
    while not outcomes or not outcomes[-1][1]:
        observation, reward, terminated, truncated, info = env.step(np.array([0, 1], np.float32))
        outcomes.append((reward, terminated))
        assert not truncated
        assert info["success"] is terminated
    assert [reward for reward, _ in outcomes] == [0.0] * (len(outcomes) - 1) + [1.0]
    assert info["distance"] <= 1.0
    assert np.hypot(*(observation[:2] - (11, 13))) == pytest.approx(info["distance"], abs=1e-5)


def test_without_a_goal_an_episode_runs_into_the_time_limit():
    env = gym.make(ENV_ID)
    env.reset(seed=0)
    for step in range(1, 2001):
        _, reward, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
        assert (reward, terminated, truncated) == (0.0, False, step == 2000)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ((9, 2), r"\(9, 2\) is in a wall; the nearest free cell is \(8, 2\)"),
        ((-3, 40), r"outside the maze of 22 rows and 22 columns; the nearest free cell is \(1, 20\)"),
        ((13, 16), "closed in by walls"),
        ((1.5, 2), "two whole numbers"),
        ((1, 2, 3), "two whole numbers"),
        ("1,2", "two whole numbers"),
        ((float("nan"), 2), "two whole numbers"),
    ],
)
def test_a_goal_that_cannot_be_reached_is_refused(goal, message):
    with pytest.raises(ValueError, match=message):
        gym.make(ENV_ID, goal=goal)


def test_every_reachable_cell_can_be_a_goal():
    env = PointMazeEnv()
    assert len(env.free_cells) == 289
    assert all(env.maze.check_cell(cell) == cell for cell in env.free_cells)


def test_splits_hold_the_papers_goals_and_training_never_sees_a_test_goal():
    env = PointMazeEnv()
    sizes = {split: len(env.tasks(split)) for split in env.maze.goals}
    assert sizes == {
        "train": 40,
        "train_20": 20,
        "train_10": 10,
        "test": 10,
        "narrow_train": 10,
        "narrow_top_test": 10,
        "narrow_bottom_test": 10,
    }
    assert env.tasks("test")[0] == (12, 7)
    assert not set(env.tasks("test")) & (set(env.tasks("train")) | set(env.tasks("train_20")))
    for split in sizes:
        assert set(env.tasks(split)) <= set(env.free_cells)


def test_an_unknown_split_is_refused_with_the_right_names():
    with pytest.raises(ValueError, match=r"train_20.*got 'validation'"):
        PointMazeEnv().tasks("validation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": (1, 1)}, r"start.*got \['begin'\]"),
        ({"start": (9, 2)}, "start cell"),
        ({"start": (1, 2, 3)}, "start position"),
        ({"start": (float("inf"), 1)}, "start position"),
        ({"velocity": (1, float("nan"))}, "velocity"),
        ({"velocity": 3}, "velocity"),
    ],
)
def test_wrong_reset_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PointMazeEnv().reset(options=options)


@pytest.mark.parametrize("action", [(1, 2, 3), (float("nan"), 0), 1.0])
def test_an_action_that_is_not_two_finite_numbers_is_refused_without_effect(action):
    env = PointMazeEnv()
    before = env.reset(seed=0)[0]
    with pytest.raises(ValueError, match="force of 2 numbers"):
        env.step(action)
    np.testing.assert_array_equal(env._observation(), before)


def test_a_picture_shows_the_ball_the_goal_and_does_not_disturb_the_dynamics():
    env, twin = PointMazeEnv(goal=(2, 18), render_mode="rgb_array"), PointMazeEnv(goal=(2, 18))
    for maze in (env, twin):
        maze.reset(seed=0, options={"start": (18.2, 5.1)})
    try:
        picture = env.render()
    except RuntimeError as error:
        pytest.skip(f"no graphics here: {error}")
    assert (picture.shape, picture.dtype) == ((480, 480, 3), np.uint8)
    red, green, blue = (picture[..., i].astype(int) for i in range(3))
    metre = 480 / 22
    balls, goals = np.argwhere((red - blue > 80) & (red - green > 80)), np.argwhere((green - red > 60) & (green - blue > 20))
    np.testing.assert_allclose(balls.mean(0) / metre - 0.5, (18.2, 5.1), atol=0.35)
    np.testing.assert_allclose(goals.mean(0) / metre - 0.5, (2, 18), atol=0.6)
    for _ in range(30):
        env.render()
        np.testing.assert_array_equal(push(env, (1, -1), 3), push(twin, (1, -1), 3))
    env.close()
    env.close()


def test_without_a_graphics_library_rendering_says_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    with pytest.raises(RuntimeError, match=r"libegl1.*render_mode=None"):
        PointMazeEnv(render_mode="rgb_array").render()


def test_without_a_render_mode_there_is_no_picture():
    assert PointMazeEnv().render() is None
    with pytest.raises(ValueError, match="rgb_array"):
        PointMazeEnv(render_mode="human")
