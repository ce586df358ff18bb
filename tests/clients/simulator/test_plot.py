import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from clients.simulator.plot import AFTER, BEFORE, GOAL, plot_layout, plot_paths, plot_run

LAYOUT = ["#######", "#OOOOO#", "#O###O#", "#OOOOO#", "#######"]
ROW_1 = np.array([[1.0, 1.0, 0, 0], [1.0, 3.0, 0, 0], [1.0, 5.0, 0, 0]])
ROW_3 = np.array([[3.0, 1.0, 0, 0], [3.0, 5.0, 0, 0]])


def has_colour(picture, colour):
    """Whether a few pixels have exactly this colour, as the dot at a path's end and the goal's rim do."""
    return (np.abs(picture[..., :3] - to_rgb(colour)).max(-1) < 0.02).sum() > 10


def halves(file):
    picture = matplotlib.image.imread(file)
    return np.split(picture[:, : picture.shape[1] // 2 * 2], 2, axis=1)


def test_walls_are_drawn_where_the_layout_has_them():
    ax = Figure().subplots()
    plot_layout(ax, LAYOUT)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[cell == "#" for cell in row] for row in LAYOUT])


def test_paths_before_stand_left_and_paths_after_right(tmp_path):
    plot_paths(LAYOUT, [ROW_1], [ROW_3, ROW_1], (3, 5), tmp_path / "paths.png")
    left, right = halves(tmp_path / "paths.png")
    assert has_colour(right, AFTER)
    assert not has_colour(left, AFTER)
    assert has_colour(left, BEFORE)
    assert all(has_colour(half, GOAL) for half in (left, right))


def test_a_runs_last_episodes_stand_right(tmp_path):
    paths = {episode: ROW_1 if episode < 2 else ROW_3 for episode in range(4)}
    plot_run(LAYOUT, paths, [False, True, True, True], (3, 5), tmp_path / "run.png", conditioning=2)
    left, right = halves(tmp_path / "run.png")
    upper = slice(0, len(left) * 2 // 3)
    assert has_colour(right[upper], AFTER)
    assert not has_colour(left[upper], AFTER)


@pytest.mark.parametrize(("paths", "success", "conditioning"), [({}, [], 20), ({0: ROW_1}, [True], 20), ({0: ROW_1}, [True], 0)])
def test_a_run_that_was_cut_short_can_be_drawn(tmp_path, paths, success, conditioning):
    plot_run(LAYOUT, paths, success, (3, 5), tmp_path / "short.png", conditioning=conditioning)
    assert (tmp_path / "short.png").stat().st_size > 5000
