"""The adaptation benchmark against a service that was really started: what it keeps, what it makes, how it stops."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.adaptation import claim, main, unseen_tasks
from clients.simulator.tasks import find_domain
from tests.processes import processes_that_name

ROOT = Path(__file__).parents[2]
AT_THE_START, FAR = "10,10", "3,18"  # a goal that the first step reaches, and one that small random networks do not


@pytest.fixture
def arguments(service_url, tmp_path):
    """Three episodes of a run, into a folder of its own."""
    fixed = ["--url", service_url, "--env", "maze", "--out", str(tmp_path / "out"), "--client-option=--no-finetune"]
    return lambda *more, k=1, episodes=3: [*fixed, "--episodes", str(episodes), "--conditioning", str(k), *map(str, more)]


@contextmanager
def started(arguments):
    command = [sys.executable, "-m", "benchmarks.adaptation", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_task_and_seed_is_run_once_and_reported(arguments, tmp_path, capsys):
    wanted = arguments("--task", AT_THE_START, "--seeds", 0, 1)
    assert main(wanted) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["blocks"] == {"conditioning": {"mean": 1.0, "low": 1.0, "high": 1.0}}
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert (tmp_path / "out/table.md").read_text() in said
    assert "2 of 2: 10,10, seed" in said
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*seed*")}
    (tmp_path / "out/10-10-seed1.json").unlink()
    assert main(wanted) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*seed*")}
    assert [file.name for file in after if after[file] != before[file]] == ["10-10-seed1.json"]


def test_finished_runs_are_reported_again_without_a_service(arguments, tmp_path, capsys):
    main(arguments("--task", AT_THE_START, "--seeds", 0))
    (tmp_path / "out/table.md").unlink()
    capsys.readouterr()
    assert main(["--env", "maze", "--task", AT_THE_START, "--out", str(tmp_path / "out"), "--episodes", "3", "--no-run"]) == 0
    assert (tmp_path / "out/table.md").read_text() in capsys.readouterr().out


def test_a_folder_is_kept_for_one_bundle_and_one_k(arguments, tmp_path, capsys):
    assert main(arguments("--task", AT_THE_START, "--seeds", 0)) == 0
    assert main(arguments("--task", AT_THE_START, "--seeds", 0, k=2)) == 2
    assert "holds runs of conditioning 1 instead of 2: name another folder" in capsys.readouterr().err
    claim(tmp_path / "new", {"bundle": "aa"})
    claim(tmp_path / "new", {"bundle": "aa"})
    with pytest.raises(ValueError, match="bundle aa instead of bb"):
        claim(tmp_path / "new", {"bundle": "bb"})


def test_what_a_client_says_when_it_fails_is_told(arguments, tmp_path, capsys):
    assert main(arguments("--task", "0,0", "--seeds", 0)) == 1
    assert "in a wall" in capsys.readouterr().err
    assert list((tmp_path / "out").glob("*seed*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_that_is_stopped_keeps_finished_runs_and_leaves_no_client(arguments, tmp_path, number):
    main(arguments("--task", AT_THE_START, "--seeds", 0))
    # The finished run has three episodes; the other one asks for as many, of two thousand steps each.
    with started(arguments("--task", AT_THE_START, "--task", FAR, "--seeds", 0)) as benchmark:
        wait_until(lambda: processes_that_name("3-18-seed0"))
        os.kill(benchmark.pid, number)
        _, error = benchmark.communicate(timeout=60)
        assert benchmark.returncode == 130
    assert error.startswith("stopped: 1 of 2 runs are kept")
    assert processes_that_name(str(tmp_path)) == []
    assert [file.name for file in (tmp_path / "out").glob("*seed*")] == ["10-10-seed0.json"]


def test_the_clients_of_a_benchmark_that_was_killed_end_with_their_next_episode(arguments, tmp_path):
    with started(arguments("--task", FAR, "--seeds", 0, episodes=50)) as benchmark:
        wait_until(lambda: processes_that_name("3-18-seed0"))
        benchmark.kill()
        benchmark.wait(20)
    wait_until(lambda: not processes_that_name(str(tmp_path)))
    assert list((tmp_path / "out").glob("*seed0.json")) == []


def test_the_tasks_are_those_of_the_test_split():
    assert unseen_tasks(find_domain("kitchen"))[3] == "microwave,kettle,top burner,hinge cabinet"
    assert len(unseen_tasks(find_domain("maze"))) == 10
