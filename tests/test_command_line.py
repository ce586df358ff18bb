"""What every command of the project owes somebody who is looking for the right one."""

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
