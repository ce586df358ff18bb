import numpy as np
import pytest

from training.collect.maze import Follower, GridPlanner, MazeCollectConfig, collect_maze
from training.config import load_config
from training.simulators.maze import MazeSimulator

WALLS = np.array([[cell == "#" for cell in row] for row in ["######", "#OOO##", "#O#O##", "#OOO##", "####O#", "######"]], np.uint8)


@pytest.fixture(scope="module")
def simulator():
    return MazeSimulator.from_env()


@pytest.fixture(scope="module")
def episodes(simulator):
    return collect_maze(MazeCollectConfig(episodes=60, seed=1), simulator)


def test_the_planner_knows_only_cells_that_are_connected_to_the_start():
    planner = GridPlanner(WALLS, (1, 1))
    assert len(planner.cells) == 8
    assert [4, 4] not in planner.cells.tolist()


def test_each_planned_cell_is_one_step_nearer_and_ties_fall_both_ways():
    planner = GridPlanner(WALLS, (1, 1))
    goal = planner.cells.tolist().index([3, 3])
    rng = np.random.default_rng(0)
    following = planner.next_cells(np.full(50, goal), np.tile([1, 1], (50, 1)), rng)
    assert {tuple(cell) for cell in following.tolist()} == {(1, 2), (2, 1)}
    np.testing.assert_array_equal(planner.next_cells(np.array([goal]), np.array([[2, 3]]), rng), [[3, 3]])
    np.testing.assert_array_equal(planner.next_cells(np.array([goal]), np.array([[3, 3]]), rng), [[3, 3]])


def test_a_ball_that_was_kicked_off_its_path_heads_for_the_next_cell_from_where_it_is():
    planner = GridPlanner(WALLS, (1, 1))
    cells, rng = np.array([[1, 1]]), np.random.default_rng(0)
    follower = Follower(MazeCollectConfig(), planner, np.array([planner.cells.tolist().index([1, 3])]), cells)
    follower.aim(cells, np.array([True]), rng)
    assert follower.heading.tolist() == [[1, 2]]
    follower.actions(np.array([[1.2, 1.2, 0.0, 0.0]]), rng)
    assert follower.heading.tolist() == [[1, 2]]
    follower.actions(np.array([[3.1, 2.9, 0.0, 0.0]]), rng)
    assert follower.heading.tolist() == [[2, 3]]


def test_episodes_have_one_observation_more_than_actions_and_stay_within_limits(episodes):
    assert len(episodes) == 60
    for episode in episodes:
        assert 50 <= len(episode) <= 1600
        assert episode.observations.shape == (len(episode) + 1, 4)
        assert (episode.observations.dtype, episode.actions.dtype) == (np.float32, np.float32)
        assert np.abs(episode.actions).max() <= 1
        assert np.abs(episode.observations[:, 2:]).max() < 10


def test_observations_follow_from_actions_except_at_kicks(simulator, episodes):
    kicked, steps = 0, 0
    for episode in episodes:
        expected = simulator.step(episode.observations[:-1], episode.actions)
        np.testing.assert_allclose(expected[:, :2], episode.observations[1:, :2], atol=1e-4)  # a kick moves nothing by itself
        kicked += (np.abs(expected[:, 2:] - episode.observations[1:, 2:]).max(1) > 0.01).sum()
        steps += len(episode)
    assert kicked / steps == pytest.approx(0.01, rel=0.2)


def test_without_kicks_and_noise_every_trajectory_arrives_at_full_speed(simulator):
    config = MazeCollectConfig(episodes=40, action_noise=0, kick_rate=0, kick_speed=0)
    episodes = collect_maze(config, simulator)
    assert max(len(episode) for episode in episodes) < 1000
    speeds = np.concatenate([np.hypot(*episode.observations[:, 2:].T) for episode in episodes])
    assert speeds.mean() > 3


def test_starts_lie_off_the_lattice_all_over_the_maze(episodes):
    starts = np.stack([episode.observations[0, :2] for episode in episodes])
    offsets = starts - np.rint(starts)
    assert np.abs(offsets).max() <= 0.38
    assert offsets.std() == pytest.approx(0.38 / 3**0.5, rel=0.2)
    assert len(np.unique(np.rint(starts), axis=0)) > 45


def test_trajectories_never_pass_through_walls(simulator, episodes):
    positions = np.concatenate([episode.observations[:, :2] for episode in episodes])
    cells = np.rint(positions).astype(int)
    assert not simulator.walls[cells[:, 0], cells[:, 1]].any()


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others(simulator):
    once, again, other = (collect_maze(MazeCollectConfig(episodes=3, seed=seed), simulator) for seed in (5, 5, 6))
    for first, second in zip(once, again, strict=True):
        np.testing.assert_array_equal(first.observations, second.observations)
        np.testing.assert_array_equal(first.actions, second.actions)
    assert not np.array_equal(once[0].observations[0], other[0].observations[0])


def test_the_presets_demonstrator_is_a_configuration_of_this_collector():
    preset = load_config("maze").collect.demonstrator
    assert MazeCollectConfig(**preset).episodes == 3000
