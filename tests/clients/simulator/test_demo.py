"""``make demo``'s program, started as a person starts it: it leaves its picture and no process."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from clients.examples.demo import DEMONSTRATIONS
from clients.simulator.tasks import find_domain
from tests.processes import processes_that_name

ROOT = Path(__file__).parents[3]


def command(bundle, out, *arguments):
    return [sys.executable, "-m", "clients.examples.demo", "--bundle", str(bundle), "--out", str(out), *map(str, arguments)]


def run_to_its_end(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)


@contextmanager
def started(*arguments):
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def bundle(maze_like_bundle, tmp_path):
    """The bundle under a path that no other process names."""
    link = tmp_path / "bundle-of-this-test"
    link.symlink_to(maze_like_bundle.path)
    return link


def test_the_demonstration_runs_and_leaves_a_picture_and_no_process(bundle, tmp_path):
    arguments = ("--task", "10,10", "--episodes", 3, "--conditioning", 2)
    done = subprocess.run(command(bundle, tmp_path / "out", *arguments), capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What happened" in done.stdout
    assert (tmp_path / "out/maze.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out/maze.json").read_text())["episodes"]) == 3
    assert processes_that_name(str(bundle)) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demonstration_that_is_stopped_stops_its_service_and_its_simulator(bundle, tmp_path, number, status):
    with started(bundle, tmp_path / "out", "--task", "3,18", "--episodes", 50) as demo:
        assert re.search(r"The service runs at http://127\.0\.0\.1:\d+", demo.stdout.readline())
        assert "episode   0" in demo.stdout.readline()
        assert processes_that_name(str(bundle))
        demo.send_signal(number)
        demo.communicate(timeout=100)
        assert demo.returncode == status
    assert processes_that_name(str(bundle)) == []


def test_a_service_that_cannot_start_is_told_with_the_end_of_its_log(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text("{}")
    done = subprocess.run(
        command(tmp_path / "bundle", tmp_path / "out"), capture_output=True, text=True, cwd=ROOT, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "the service ended with status 2" in done.stderr
    assert "manifest.json: expected a JSON object with a format_version" in done.stderr


def test_without_a_bundle_it_says_how_to_get_one(tmp_path):
    done = run_to_its_end(tmp_path / "none", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"no bundle at {tmp_path}/none: train one with 'make train CONFIG=maze'")


def test_the_kitchens_demonstration_names_its_own_bundle_and_leaves_timeline_and_figures(kitchen_like_bundle, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "clients.examples.demo", "--env", "kitchen"], capture_output=True, text=True, cwd=tmp_path,
        timeout=100, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("no bundle at bundles/kitchen: train one with 'make train CONFIG=kitchen'")
    arguments = ("--env", "kitchen", "--no-video", "--episodes", 2, "--conditioning", 1)
    done = run_to_its_end(kitchen_like_bundle.path, tmp_path / "out", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The task: kitchen microwave,kettle,top burner,hinge cabinet" in done.stdout
    assert str(tmp_path / "out/kitchen.png") in done.stdout
    assert len(json.loads((tmp_path / "out/kitchen.json").read_text())["episodes"]) == 2
    assert not (tmp_path / "out/kitchen.mp4").exists()


def test_every_demonstration_shows_a_task_that_is_unseen_in_training():
    for name, shown in DEMONSTRATIONS.items():
        domain = find_domain(name)
        with closing(domain.make(shown.task)) as env:
            task, splits = domain.task_from_text(shown.task), env.get_wrapper_attr("tasks")
            assert task in splits("test")
            assert task not in splits("train")
