"""The command line and the examples against a service that was really started, over HTTP."""

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from clients.examples import robot_loop
from clients.examples.gymnasium_loop import main as gymnasium_loop
from clients.sdk import SkilletClient, errors
from clients.simulator.__main__ import main
from clients.simulator.report import Display
from clients.simulator.run import Simulation
from tests.clients.servers import free_port
from tests.served import started_service

ROOT = Path(__file__).parents[3]
AT_THE_START, FAR = "10,10", "3,18"  # a goal that the first step reaches, and one that small random networks do not


@pytest.fixture
def simulate(service_url, tmp_path):
    """Runs the command line in this process; returns its status and the JSON record."""

    def run(*arguments):
        file = tmp_path / "out.json"
        status = main(["--url", service_url, "--env", "maze", "--json", str(file), *map(str, arguments)])
        return status, json.loads(file.read_text())

    return run


@pytest.fixture
def client(service_url):
    with SkilletClient(service_url) as client:
        yield client


@pytest.fixture
def new_session(client):
    """Asks for the one open session that was not there when the test began; None when there is none."""
    before = {info.session_id for info in client.list_sessions()}

    def find():
        new = [info.session_id for info in client.list_sessions() if info.session_id not in before and not info.closed]
        assert len(new) <= 1
        return new[0] if new else None

    return find


def test_a_run_explores_first_then_adapts_and_closes_its_session(simulate, new_session, tmp_path, capsys):
    picture = tmp_path / "run.png"
    status, record = simulate("--task", AT_THE_START, "--episodes", 8, "--conditioning", 3, "--seed", 5, "--no-finetune", "--plot", picture)
    assert status == 0
    assert (record["env"], record["task"], record["seed"]) == ("maze", AT_THE_START, 5)
    assert [episode["index"] for episode in record["episodes"]] == list(range(8))
    assert [episode["phase"] for episode in record["episodes"]] == ["exploring"] * 3 + ["adapted"] * 5
    assert all(episode["success"] is True and episode["return"] == 1.0 and episode["steps"] == 1 for episode in record["episodes"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "conditioning (0-2)" in printed
    assert "next five (3-7)" in printed
    assert new_session() is None


def test_an_episode_that_misses_its_goal_ends_at_the_time_limit(simulate):
    status, record = simulate("--task", FAR, "--episodes", 1, "--conditioning", 1)
    assert status == 0
    episode = record["episodes"][0]
    assert (episode["success"], episode["return"], episode["steps"], episode["policy_version"]) == (False, 0.0, 2000, 0)


def test_a_run_in_the_kitchen_tells_scores_and_subtasks(service_url, tmp_path, capsys):
    file, task = tmp_path / "out.json", "microwave,kettle,bottom burner,hinge cabinet"
    arguments = ["--url", service_url, "--env", "kitchen", "--task", task, "--episodes", "2", "--conditioning", "1", "--no-finetune"]
    assert main([*arguments, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert (record["env"], record["task"], record["conditioning"]) == ("kitchen", task, 1)
    assert [(episode["phase"], episode["steps"]) for episode in record["episodes"]] == [("exploring", 280), ("exploring", 280)]
    assert all(episode["return"] == len(episode["completed"]) for episode in record["episodes"])
    printed = capsys.readouterr().out
    assert f"score {record['episodes'][0]['return']:g} of 4: " in printed
    assert all(name in printed for name in task.split(","))


def test_a_video_shows_the_chosen_episodes(simulate, tmp_path, capsys):
    if sys.platform != "linux":
        pytest.skip("draws without a screen through EGL")
    video = tmp_path / "run.mp4"
    status, _ = simulate("--task", AT_THE_START, "--episodes", 3, "--no-finetune", "--video", video, "--video-episodes", "0,last,2")
    said = capsys.readouterr()
    if "cannot draw with the graphics backend" in said.err:
        pytest.skip(said.err)
    assert status == 0
    assert f"{video}: episode 0 and 2" in said.out.replace("\n", "")
    with av.open(str(video)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (960, 512)


def test_the_same_seed_gives_the_same_paths_and_another_one_does_not(client):
    def path(seed):
        env = gym.make("clients.simulator:skillet/PointMaze-v0", goal=(3, 18), max_episode_steps=30)
        with closing(env), client.open_session(seed=seed, finetuning=False) as session:
            watcher = Display(Console(quiet=True), 1)
            simulation = Simulation(env, session, seed, watcher, keep_paths=True)
            list(simulation.episodes(1, max_wait_s=0))
            return simulation.paths[0]

    assert path(1).shape == (31, 4)
    np.testing.assert_array_equal(path(1), path(1))
    assert not np.array_equal(path(1), path(2))


def test_a_session_that_was_kept_can_be_gone_on_with(simulate, client, new_session):
    simulate("--task", AT_THE_START, "--episodes", 2, "--conditioning", 3, "--seed", 4, "--keep")
    kept = new_session()
    _, record = simulate("--task", AT_THE_START, "--episodes", 2, "--session", kept, "--no-wait")
    assert record["seed"] == 4
    assert [episode["index"] for episode in record["episodes"]] == [2, 3]
    assert [episode["phase"] for episode in record["episodes"]] == ["exploring", "adapted"]
    with pytest.raises(errors.SessionClosed):
        client.session(kept)


def test_a_learner_that_does_not_come_is_waited_for_as_long_as_asked_and_told(simulate, capsys):
    status, record = simulate("--task", AT_THE_START, "--episodes", 3, "--conditioning", 1, "--max-wait-s", 0.3)
    assert (status, len(record["episodes"])) == (0, 3)
    out = capsys.readouterr().out
    assert out.count("warning: the learner has seen 0 of 1 episodes") == 1
    assert "waited 0.3 s for the learner" in out


def test_a_session_that_is_closed_under_the_run_ends_it_with_one_line_and_what_was_complete(
    simulate, client, new_session, monkeypatch, capsys
):
    def close_before_the_third(display, episode, phase):
        if episode == 2:
            client.session(new_session()).close()

    monkeypatch.setattr(Display, "episode_started", close_before_the_third)
    status, record = simulate("--task", AT_THE_START, "--episodes", 5)
    assert status == 1
    assert len(record["episodes"]) == 2
    error = capsys.readouterr().err
    assert "session_closed" in error
    assert error.count("\n") == 1


def test_ctrl_c_keeps_what_is_complete_closes_the_session_and_exits_130(service_url, new_session, tmp_path):
    file = tmp_path / "out.json"
    command = [sys.executable, "-m", "clients.simulator", "--url", service_url, "--env", "maze", "--task", FAR, "--episodes", "50"]
    process = subprocess.Popen([*command, "--json", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert first.startswith("episode   0")
    assert process.returncode == 130
    assert error == ""
    assert "interrupted after 1 complete episodes" in out
    assert [episode["index"] for episode in json.loads(file.read_text())["episodes"]] == [0]
    assert new_session() is None


def test_a_loop_goes_on_where_it_was_when_the_service_is_killed_and_started_again(maze_like_bundle, tmp_path):
    port = free_port()

    def actions(client, disturb):
        with client.open_session(seed=6, finetuning=False) as session:
            session.start_episode()
            action = session.act(np.zeros(4))
            for step in range(20):
                if step == 10:
                    disturb()
                yield action.step, action.skill_step, action.action
                action = session.step(0.0, np.full(4, step / 10), False, False)

    with ExitStack() as services:
        url, process = services.enter_context(started_service(maze_like_bundle.path, data_dir=tmp_path / "data", port=port))

        def kill_and_start_again():
            process.kill()
            process.wait()
            services.enter_context(started_service(maze_like_bundle.path, data_dir=tmp_path / "data", port=port))

        with SkilletClient(url) as client:
            calm = list(actions(client, lambda: None))
            rough = list(actions(client, kill_and_start_again))
    for (calm_step, calm_skill_step, calm_action), (step, skill_step, action) in zip(calm, rough, strict=True):
        assert (calm_step, calm_skill_step) == (step, skill_step)
        np.testing.assert_array_equal(calm_action, action)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_robot_that_has_found_its_goal_by_exploring_goes_there_again_and_its_policy_is_fine_tuned(tmp_path):
    """Learning through the HTTP path succeeds: the committed bundle, a goal it was not trained for, a learner beside the API."""
    file = tmp_path / "out.json"
    with started_service(ROOT / "bundles" / "maze", data_dir=tmp_path / "data", learners=1) as (url, _):
        arguments = ["--env", "maze", "--task", "12,7", "--episodes", "16", "--conditioning", "8", "--max-wait-s", "20"]
        assert main(["--url", url, *arguments, "--json", str(file)]) == 0
    episodes = json.loads(file.read_text())["episodes"]
    exploring = [episode["success"] for episode in episodes if episode["phase"] == "exploring"]
    after = [episode["success"] for episode in episodes if episode["phase"] != "exploring"]
    assert np.mean(after) > np.mean(exploring) > 0
    assert len(after) >= 5
    assert np.mean(after) >= 0.7
    assert episodes[-1]["phase"] == "finetuning"
    assert episodes[-1]["policy_version"] >= 1


def test_the_gymnasium_example_runs(service_url, capsys):
    gymnasium_loop(service_url, episodes=1)
    assert "episode 0 (exploring): return" in capsys.readouterr().out


def test_the_robot_example_commands_to_the_episodes_end(service_url, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with closing(gym.make("clients.simulator:skillet/PointMaze-v0", goal=(10, 10), max_episode_steps=60)) as robot:
        robot_loop.run(service_url, robot, episodes=1)
    assert "episode 0: return " in capsys.readouterr().out
    assert len(list((tmp_path / ".cache/skillet").glob("*.onnx"))) == 1


def test_the_curl_example_runs_to_its_end(service_url, new_session):
    done = subprocess.run(["sh", ROOT / "clients/examples/curl.sh", service_url], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"episode_over":true') == 1
    assert '"closed":true' in done.stdout
    assert new_session() is None


def test_the_curl_example_shows_a_refusal_and_fails(service_url):
    done = subprocess.run(
        ["sh", ROOT / "clients/examples/curl.sh", service_url + "/nowhere"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "not_found" in done.stderr
