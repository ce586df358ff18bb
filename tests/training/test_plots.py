"""Pictures of the stages."""

import matplotlib.image
import numpy as np
import pytest

from training.plots import plot_skill_strip

COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200], [200, 0, 200]], np.uint8)


def picture(colour):
    return np.broadcast_to(colour, (48, 48, 3))


def places(file, colour):
    """Mean row and column of the pixels of this colour; None where there is none."""
    found = np.argwhere(np.abs(matplotlib.image.imread(file)[..., :3] - colour / 255).max(-1) < 0.02)
    return found.mean(0) if len(found) else None


def test_each_skill_is_a_row_and_its_pictures_follow_each_other(tmp_path):
    frames = [[picture(colour) for colour in COLOURS[:3]], [picture(colour) for colour in COLOURS[3:]]]
    plot_skill_strip(frames, ["skill 1", "skill 2"], tmp_path / "strip.png", columns=["0", "5", "10"])
    at = np.array([places(tmp_path / "strip.png", colour) for colour in COLOURS])
    np.testing.assert_allclose(at[:3, 0], at[0, 0], atol=2)
    assert at[0, 0] < at[3, 0]
    assert at[0, 1] < at[1, 1] < at[2, 1]
    np.testing.assert_allclose(at[3:, 1], at[:3, 1], atol=2)


def test_rows_of_different_length_can_be_drawn(tmp_path):
    plot_skill_strip([[picture(COLOURS[0])] * 2, [picture(COLOURS[1])]], ["a", "b"], tmp_path / "strip.png")
    assert places(tmp_path / "strip.png", COLOURS[1]) is not None


@pytest.mark.parametrize(("frames", "captions"), [([], []), ([[]], ["a"]), ([[picture(COLOURS[0])]], ["a", "b"])])
def test_a_strip_without_pictures_or_with_other_captions_is_refused(tmp_path, frames, captions):
    with pytest.raises(ValueError, match="expected pictures for each row"):
        plot_skill_strip(frames, captions, tmp_path / "strip.png")
