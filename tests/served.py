"""The service as a process of its own, with small random networks for the maze (S=4 and A=2 there as well) and the kitchen."""

import os
import re
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from threading import Timer

import gymnasium as gym
import pytest

from tests.kept_bundle import kept_bundle
from tests.tiny_bundle import TINY_SPEC, copied
from training.contract.spec import VectorSpec

START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def maze_like_bundle(tiny_bundle, tmp_path_factory):
    """The tiny bundle under the maze's Gymnasium id."""
    spec = tiny_bundle.manifest.spec.model_copy(update={"env_id": "skillet/PointMaze-v0"})
    return copied(tiny_bundle, tmp_path_factory.mktemp("bundles") / "maze-like", name="maze-like", spec=spec)


@pytest.fixture(scope="session")
def kitchen_like_bundle(pytestconfig, tmp_path_factory):
    """Small random networks that pass for the kitchen's: S=30, A=9."""
    with closing(gym.make("clients.simulator:skillet/Kitchen-v0")) as env:
        vectors = {
            name: VectorSpec(
                names=[entry for entry, _ in env.metadata[name]],
                units=[unit for _, unit in env.metadata[name]],
                low=space.low.tolist(),
                high=space.high.tolist(),
            )
            for name, space in (("observation", env.observation_space), ("action", env.action_space))
        }
    spec = TINY_SPEC.model_copy(update={**vectors, "env_id": "skillet/Kitchen-v0", "episode_steps": 280})
    return kept_bundle(pytestconfig, tmp_path_factory.mktemp("bundles") / "kitchen-like", spec=spec)


@contextmanager
def started_service(*bundles, data_dir, port=0, learners=0):
    """``python -m service``. Yields its address and its process."""
    options = [*(("--bundle", bundle) for bundle in bundles), ("--port", port), ("--data-dir", data_dir), ("--learners", learners)]
    command = [sys.executable, "-m", "service", *(str(part) for option in options for part in option)]
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
def service_url(maze_like_bundle, kitchen_like_bundle, tmp_path_factory):
    """A service for all tests, on a free port."""
    bundles = maze_like_bundle.path, kitchen_like_bundle.path
    with started_service(*bundles, data_dir=tmp_path_factory.mktemp("data")) as (url, process):
        yield url
    assert process.returncode == 0
