"""The service as a process of its own, with small random networks that pass for the maze's (S=4 and A=2 there as well)."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from threading import Timer

import pytest

from training.contract.bundle import write_bundle

START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def maze_like_bundle(tiny_bundle, tmp_path_factory):
    """The tiny bundle under the maze's Gymnasium id."""
    manifest = tiny_bundle.manifest
    files = {name: tiny_bundle.read(name) for name in manifest.files}
    fields = {name: getattr(manifest, name) for name in ("golden", "networks", "finetuning", "provenance")}
    spec = manifest.spec.model_copy(update={"env_id": "skillet/PointMaze-v0"})
    return write_bundle(tmp_path_factory.mktemp("bundles") / "maze-like", files, name="maze-like", spec=spec, **fields)


@contextmanager
def started_service(bundle, data_dir, *, port=0, learners=0):
    """``python -m service``. Yields its address and its process."""
    options = {"--bundle": bundle, "--port": port, "--data-dir": data_dir, "--learners": learners}
    command = [sys.executable, "-m", "service", *(str(part) for option in options.items() for part in option)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SKILLET_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watchdog = Timer(START_TIMEOUT_S, process.kill)  # so that reading its output does not wait for ever
    watchdog.start()
    try:
        ready = process.stdout.readline()
        watchdog.cancel()
        match = re.search(r"at (http://\S+)", ready)
        assert match, f"the service said {ready!r} instead of its address"
        yield match.group(1), process
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGINT)
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="session")
def service_url(maze_like_bundle, tmp_path_factory):
    """A service for all tests, on a free port."""
    with started_service(maze_like_bundle.path, tmp_path_factory.mktemp("data")) as (url, process):
        yield url
    assert process.returncode == 0
