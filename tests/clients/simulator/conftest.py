"""The service as a process of its own, with small random networks that pass for the maze's (S=4 and A=2 there as well)."""

import os
import re
import signal
import subprocess
import sys

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


@pytest.fixture(scope="session")
def service_url(maze_like_bundle, tmp_path_factory):
    """``python -m service`` on a free port, without a learner."""
    data_dir = tmp_path_factory.mktemp("data")
    command = [sys.executable, "-m", "service", "--bundle", str(maze_like_bundle.path), "--port", "0", "--data-dir", str(data_dir)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SKILLET_")}
    process = subprocess.Popen([*command, "--no-learner"], stdout=subprocess.PIPE, text=True, env=environment)
    watchdog = _stop_after(process, START_TIMEOUT_S)
    ready = process.stdout.readline()
    watchdog.cancel()
    match = re.search(r"at (http://\S+)", ready)
    assert match, f"the service said {ready!r} instead of its address"
    yield match.group(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()


def _stop_after(process, seconds):
    """Ends a process that hangs, so that reading its output does not wait for ever."""
    from threading import Timer

    timer = Timer(seconds, process.kill)
    timer.start()
    return timer
