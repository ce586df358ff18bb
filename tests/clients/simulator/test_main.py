"""The command line: what it refuses, each in one line and with status 2."""

import ctypes.util
import os
import subprocess
import sys

import pytest

from clients.simulator.__main__ import main
from tests.clients.servers import free_port, http_server, lists, refuses, says

GOOD = ["--env", "maze", "--task", "12,7", "--episodes", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "maz", "--task", "12,7", "--episodes", "2"], "nearest is 'maze'"),
        (["--env", "maze", "--task", "twelve", "--episodes", "2"], "ROW,COL in whole numbers"),
        (["--env", "maze", "--task", "0,0", "--episodes", "2"], "in a wall; the nearest free cell is"),
        (["--env", "maze", "--task", "99,99", "--episodes", "2"], "outside the maze"),
        (["--env", "maze", "--task", "12,7", "--episodes", "-3"], "at least 1, got '-3'"),
        (["--env", "maze", "--task", "12,7", "--episodes", "two"], "at least 1, got 'two'"),
        ([*GOOD, "--conditioning", "-1"], "at least 0, got '-1'"),
        ([*GOOD, "--max-wait-s", "nan"], "number of seconds"),
        ([*GOOD, "--json", "no/such/directory/out.json"], "directory that is there"),
        ([*GOOD, "--video-episodes", "first,third"], "'first' or 'last'"),
        ([*GOOD, "--video-episodes", "0,1,0,1,0"], "up to 4"),
        ([*GOOD, "--url", "ftp://here"], "http://HOST:PORT"),
        ([*GOOD, "--num-envs", "0"], "at least 1, got '0'"),
        ([*GOOD, "--num-envs", "257"], "at most 256"),
        ([*GOOD, "--num-envs", "2", "--keep", "--session", "x"], "--num-envs is for runs without --session, --keep"),
        (["--env", "maze"], "required: --task, --episodes"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_and_status_2(arguments, message, capsys):
    try:
        code = main(["--url", "http://127.0.0.1:1", *arguments])
    except SystemExit as stopped:  # how argparse leaves
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_service_that_is_not_there_is_one_line_and_status_2(capsys):
    assert main(["--url", f"http://127.0.0.1:{free_port()}", *GOOD]) == 2
    assert "nothing listens at" in capsys.readouterr().err


def test_without_a_graphics_library_a_video_is_refused_before_the_service_is_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    assert main(["--url", f"http://127.0.0.1:{free_port()}", *GOOD, "--video", str(tmp_path / "out.mp4")]) == 2
    error = capsys.readouterr().err
    assert "On Linux install libegl1" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("backend", ["osmesa", "none of them"])
def test_a_graphics_library_that_is_named_and_not_there_is_told_in_one_line(backend, tmp_path):
    if ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa is installed here")
    command = [sys.executable, "-m", "clients.simulator", "--url", f"http://127.0.0.1:{free_port()}", *GOOD]
    # What a drawing test of this process has chosen is not the user's choice.
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": backend}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 2
    assert f"MuJoCo cannot be loaded with MUJOCO_GL={backend}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_kitchen_says_nothing_about_other_environments(tmp_path):
    command = [sys.executable, "-m", "clients.simulator", "--url", f"http://127.0.0.1:{free_port()}", "--env", "kitchen", "--episodes", "1"]
    task = "microwave,kettle,bottom burner,hinge cabinet"
    done = subprocess.run([*command, "--task", task], capture_output=True, text=True, check=False, timeout=60)
    assert "nothing listens at" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_the_library_that_writes_videos_one_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["--url", f"http://127.0.0.1:{free_port()}", *GOOD, "--video", str(tmp_path / "out.mp4")]) == 2
    assert "pip install av" in capsys.readouterr().err


def test_a_video_of_an_episode_that_will_not_be_run_is_refused_before_a_session_is_opened(capsys):
    bundles = {"bundles": [{"name": "maze", "digest": "ab" * 32, "env_id": "skillet/PointMaze-v0"}]}
    with http_server(says(200, bundles)) as (url, server):
        assert main(["--url", url, *GOOD, "--video-episodes", "0,2"]) == 2
    assert "among 0 to 1, which are run; got 2" in capsys.readouterr().err
    assert [method for method, _, _ in server.seen if method != "GET"] == []


def test_a_service_whose_bundles_are_for_other_robots_is_named_before_a_session_is_opened(capsys):
    with http_server(lists("tiny")) as (url, server):
        assert main(["--url", url, *GOOD]) == 2
        assert main(["--url", url, *GOOD, "--bundle", "tiny"]) == 2
    error = capsys.readouterr().err
    assert "no bundle of the service fits --env maze (skillet/PointMaze-v0)" in error
    assert "bundle tiny was trained in tiny/Env-v0" in error
    assert {method for method, _, _ in server.seen} == {"GET"}


def test_a_bundle_may_name_the_module_that_registers_its_environment(capsys):
    bundles = {"bundles": [{"name": "maze", "digest": "ab" * 32, "env_id": "clients.simulator:skillet/PointMaze-v0"}]}
    with http_server(says(200, bundles), refuses(422, "invalid_request")) as (url, server):
        assert main(["--url", url, *GOOD]) == 2
    assert [(method, path) for method, path, _ in server.seen] == [("GET", "/v1/bundles"), ("POST", "/v1/sessions")]
    assert "refused with invalid_request" in capsys.readouterr().err
