"""The picture of a run in the kitchen: the moments it shows, and the marks of finished subtasks."""

import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from clients.simulator.report import EpisodeResult
from clients.simulator.tasks import FinishedRun, find_domain
from clients.simulator.timeline import COLOURS, moments, plot_subtask_run, strip_of

SUBTASKS = ("kettle", "microwave", "light switch", "slide cabinet")
RED = np.broadcast_to(np.array([255, 0, 0], np.uint8), (64, 64, 3))


def episode(index, completed=None, *, phase="exploring", steps=280):
    done = completed or {}
    return EpisodeResult(index, phase, float(len(done)), len(done) == 4, steps, 0, 0.5, done)


def pixels(file, colour):
    """How many pixels have this colour."""
    return int((np.abs(matplotlib.image.imread(file)[..., :3] - to_rgb(colour)).max(-1) < 0.02).sum())


def test_the_moments_of_an_episode_are_its_finished_subtasks_its_end_and_the_middles_of_the_widest_gaps():
    assert moments(episode(0), 4) == [70, 140, 210, 280]
    assert moments(episode(0, {"kettle": 40, "microwave": 60}), 5) == [40, 60, 115, 170, 280]
    assert moments(episode(0, dict(zip(SUBTASKS, (30, 60, 90, 120), strict=True)), steps=120), 4) == [30, 60, 90, 120]
    assert moments(episode(0, dict.fromkeys(SUBTASKS, 50)), 3) == [50, 165, 280]
    assert moments(episode(0, steps=1), 5) == [1]


def test_a_strip_draws_only_the_observations_that_it_shows():
    drawn = []
    result, pictures = strip_of(episode(0), np.arange(281)[:, None], lambda observation: drawn.append(int(observation[0])) or RED)
    assert result.index == 0
    assert drawn == [step for step, _ in pictures] == moments(episode(0), 5)


def test_each_subtask_has_marks_of_its_own_colour_where_it_was_finished(tmp_path):
    results = [episode(0), episode(1, {"kettle": 30}), episode(2, {"kettle": 30, "microwave": 90}, phase="adapted")]
    plot_subtask_run(results, SUBTASKS, 2, tmp_path / "some.png")
    plot_subtask_run([episode(index) for index in range(3)], SUBTASKS, 2, tmp_path / "none.png")
    more = [pixels(tmp_path / "some.png", colour) - pixels(tmp_path / "none.png", colour) for colour in COLOURS[1:]]
    assert more[0] > 20
    assert more[1:] == [0, 0]


def test_pictures_of_the_arm_stand_in_the_plot(tmp_path):
    results = [episode(0), episode(1)]
    plot_subtask_run(results, SUBTASKS, 1, tmp_path / "with.png", [(results[0], [(140, RED), (280, RED)])])
    plot_subtask_run(results, SUBTASKS, 1, tmp_path / "without.png")
    assert pixels(tmp_path / "with.png", "red") > 10000
    assert pixels(tmp_path / "without.png", "red") == 0


@pytest.mark.parametrize(("first", "count", "conditioning"), [(0, 1, 20), (0, 1, 0), (30, 2, 20), (0, 150, 2)])
def test_short_long_and_continued_runs_can_be_drawn(tmp_path, first, count, conditioning):
    phases = ["exploring", "adapted", "finetuning"]
    results = [episode(index, {"kettle": 30}, phase=phases[min(2, index - first)]) for index in range(first, first + count)]
    plot_subtask_run(results, SUBTASKS, conditioning, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 5000


def test_without_a_graphics_library_the_timeline_comes_and_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    domain = find_domain("kitchen")
    env = domain.make(",".join(SUBTASKS))
    run = FinishedRun(env, {0: np.zeros((281, 30), np.float32)}, [episode(0, {"kettle": 30})], 1, SUBTASKS)
    assert "does not show the arm: cannot draw with the graphics backend 'egl'" in domain.plot(run, tmp_path / "run.png")
    assert pixels(tmp_path / "run.png", COLOURS[0]) > 20
    env.close()
