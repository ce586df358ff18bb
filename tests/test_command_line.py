"""What every command of the project owes somebody who is looking for the right one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = [
    "training", "training compare", "training sign", "training.convert", "service", "service.worker", "service sessions", "service tokens",
    "clients.simulator", "clients.examples.demo",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_all_that_asking_for_it_prints(command):
    """No library's note comes before it: Gymnasium-Robotics has one for whoever imports it."""
    asked = [sys.executable, "-m", *command.split(), "--help"]
    done = subprocess.run(asked, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python -m {command}")
    assert done.stderr == ""


def run(*command, **options):
    called = [sys.executable, "-m", *command]
    return subprocess.run(called, check=False, text=True, stderr=subprocess.PIPE, cwd=ROOT, timeout=120, **options)


@pytest.mark.parametrize("command", [("service",), ("service.worker",), ("service", "sessions", "ls"), ("service", "tokens", "ls")])
def test_a_variable_that_holds_no_json_is_named_in_one_line(command):
    done = run(*command, stdout=subprocess.PIPE, env={**os.environ, "SKILLET_BUNDLES": "bundles/maze"})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "SKILLET_BUNDLES: expected a JSON list, such as [\"bundles/maze\"], got 'bundles/maze'" in done.stderr


def test_the_data_folder_may_stand_after_the_name_of_a_command_whose_reader_may_leave(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        unread = run("service", "tokens", "create", "--role", "admin", "--name", "a", "--data-dir", str(tmp_path), stdout=writer)
    finally:
        os.close(writer)
    assert (unread.returncode, "Traceback" in unread.stderr, "BrokenPipe" in unread.stderr) == (141, False, False)
    before = run("service", "tokens", "--data-dir", str(tmp_path), "ls", stdout=subprocess.PIPE)
    after = run("service", "tokens", "ls", "--data-dir", str(tmp_path), stdout=subprocess.PIPE)
    assert (before.returncode, before.stdout.count("\n")) == (0, 1)
    assert after.stdout == before.stdout
