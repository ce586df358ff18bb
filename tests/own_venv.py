"""Virtual environments of their own, for published clients whose dependencies do not go together with the project's."""

import subprocess
import sys
from pathlib import Path

import pytest


def python_with(folder: Path, *packages: str) -> Path:
    """The Python of a fresh environment that has ``packages``. Skips the test when they cannot be installed, as without a network."""
    python = folder / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15", *packages]
    try:
        done = subprocess.run(install, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{', '.join(packages)} cannot be installed: pip took longer than 240 s")
    if done.returncode != 0:
        pytest.skip(f"{', '.join(packages)} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python
