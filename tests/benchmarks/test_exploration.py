import gymnasium as gym
import numpy as np
import pytest

from benchmarks.exploration import distances, main, seen, table


def test_cells_within_the_radius_of_any_state_are_seen():
    states = np.array([[1.0, 1.0, 9, 9], [4.0, 4.4, 9, 9]], np.float32)
    cells = np.array([[1, 1], [1, 2], [2, 2], [4, 5], [9, 9]], np.float32)
    assert seen(states, cells, 1.0).tolist() == [True, True, False, True, False]


def test_distances_are_those_of_the_way():
    maze = gym.make("clients.simulator:skillet/PointMaze-v0").get_wrapper_attr("maze")
    found = dict(zip(maze.free_cells, distances(maze, [maze.start]), strict=True))
    assert found[maze.start] == 0
    for (row, column), distance in found.items():
        near = [found[cell] for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)) if cell in found]
        assert distance == 0 or distance - 1 in near
        assert all(abs(distance - other) == 1 for other in near)


def test_shares_are_means_over_episodes_and_by_episode():
    share = np.array([[[True, False]], [[True, True]]])
    assert table({"novelty": share}, np.array([False, True])).splitlines()[-1] == "| novelty | 0.750 | 0.500 | 0.50 | 1.00 |"


def test_it_compares_what_a_bundle_offers(capsys: pytest.CaptureFixture[str]):
    assert main(["--sessions", "1", "--episodes", "1", "--explorations", "novelty", "skill prior"]) == 0
    *_, novelty, prior = capsys.readouterr().out.splitlines()
    assert novelty.startswith("| novelty | 0.")
    assert prior.startswith("| skill prior | 0.")
