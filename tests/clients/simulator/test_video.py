"""Videos: which pictures they hold, and captions that tell what is finished."""

import av
import numpy as np
import pytest

from clients.simulator.pictures import choose
from clients.simulator.report import EpisodeResult
from clients.simulator.video import DONE, LINE, Panel, compose, write_video

SUBTASKS = ("kettle", "microwave", "light switch", "slide cabinet")
PERIOD_S = 0.08


def panel(index, steps, completed=None):
    """An episode whose observation is the number of the step."""
    result = EpisodeResult(index, "exploring", len(completed or {}), False, steps, 0, 0.5, completed)
    return Panel(result, np.arange(steps + 1, dtype=np.float32)[:, None])


def grey(observation):
    """A picture as bright as the step's number."""
    return np.full((48, 480, 3), observation[0], np.uint8)


def frames_of(file):
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def has_colour(caption, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(caption.astype(int) - wanted).max(-1) < 4).any()


def test_a_video_shows_every_second_step_and_its_end_for_a_second(tmp_path):
    shares = list(write_video(tmp_path / "out.mp4", grey, [panel(0, 101)], period_s=PERIOD_S))
    brightness = [frame[LINE:].mean() for frame in frames_of(tmp_path / "out.mp4")]
    np.testing.assert_allclose(brightness, [*range(0, 101, 2), *[101] * 13], atol=3)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_an_episode_that_ended_earlier_stays_at_its_end_beside_a_longer_one_and_is_not_drawn_again(tmp_path):
    drawn = []

    def draw(observation):
        drawn.append(int(observation[0]))
        return grey(observation)

    list(write_video(tmp_path / "out.mp4", draw, [panel(0, 200), panel(1, 40)], period_s=PERIOD_S))
    last = frames_of(tmp_path / "out.mp4")[-1]
    assert last.shape == (48 + LINE, 960, 3)
    assert (last[LINE:, :480].mean(), last[LINE:, 480:].mean()) == (pytest.approx(200, abs=3), pytest.approx(40, abs=3))
    assert len(drawn) == 101 + 21


def test_captions_mark_subtasks_from_the_step_that_finished_them():
    shown = panel(0, 100, {"kettle": 40})
    before, after = (compose([grey([0])], [shown], step, PERIOD_S, SUBTASKS) for step in (39, 40))
    assert not has_colour(before[:64], DONE)
    assert has_colour(after[:64], DONE)
    assert after.shape == (48 + 2 * LINE, 480, 3)


def test_captions_say_episode_phase_time_and_score():
    shown = panel(7, 100, {"kettle": 40, "microwave": 80})
    assert shown.title(50, PERIOD_S, 4) == ("episode 7, exploring, 4.0 s", "score 1 of 4")
    assert shown.title(500, PERIOD_S, 4) == ("episode 7, exploring, 8.0 s", "score 2 of 4")
    assert panel(7, 100).title(99, PERIOD_S, 0)[1] == ""
    assert panel(7, 100).title(100, PERIOD_S, 0)[1] == "missed"


def test_the_captions_of_the_longest_names_fit_beside_each_other():
    names = ("bottom burner", "slide cabinet", "hinge cabinet", "light switch")
    caption = compose([grey([0])], [panel(0, 9, dict.fromkeys(names, 1))], 5, PERIOD_S, names)[: 2 * LINE]
    assert not has_colour(caption[:, -8:], DONE)


def test_a_video_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    def broken(observation):
        if observation[0] > 10:
            raise RuntimeError("the graphics card is gone")
        return grey(observation)

    (tmp_path / "out.mp4").write_text("old")
    with pytest.raises(RuntimeError, match="is gone"):
        list(write_video(tmp_path / "out.mp4", broken, [panel(0, 100)], period_s=PERIOD_S))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_first_and_last_are_those_that_were_finished_and_each_episode_is_shown_once():
    results = [panel(index, 3).result for index in (20, 21, 22)]
    assert [result.index for result in choose(("first", "last"), results)] == [20, 22]
    assert [result.index for result in choose(("last", 21, 22, 35), results)] == [22, 21]
    assert [result.index for result in choose(("first", "last"), results[:1])] == [20]
