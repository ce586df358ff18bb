"""The service as a real process: starting, stopping, starting again, and what it says when it cannot."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Driver, state, transition
from tests.service.running import (
    Remote,
    RunningService,
    await_end,
    catches,
    clean_environment,
    command,
    descendants,
    fails_to_start,
    mentioning,
    running,
)
from tests.tiny_bundle import with_finetuning
from training.contract.bundle import Bundle
from training.contract.spec import FORMAT_VERSION


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_service_leaves_no_process_and_starting_again_finds_its_sessions(
    tiny_bundle: Bundle, tmp_path: Path, number: int
) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        driver = Driver(Remote(service), conditioning_episodes=1)  # type: ignore[arg-type]
        driver.run_episode(final_reward=1.0)
        driver.start()
        action = driver.act(1, 0, state(1, 0))
        before = driver.get()
        assert len(service.pids) == 4  # itself, Redis, the API process that serves and the one that stands by
        assert service.stop(number) == 0
        await_end(service.pids)
        assert "Traceback" not in service.log()
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        driver.api = Remote(service)  # type: ignore[assignment]
        assert driver.get() == before
        assert driver.act(1, 0, state(1, 0)) == {**action, "replayed": True}
        assert driver.step(1, 0, state(1, 1))["step"] == 1


def test_after_kill_9_nothing_is_left_and_the_stale_lock_and_socket_do_not_matter(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        driver = Driver(Remote(service))  # type: ignore[arg-type]
        driver.run_episode()
        service.process.kill()
        with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as again:
            driver.api = Remote(again)  # type: ignore[assignment]
            assert driver.get()["episodes_completed"] == 1
        await_end(service.pids)


@pytest.mark.parametrize("after_s", [0.3, 0.9, 1.2, 1.5, 1.8, 2.4, 3.2])
def test_ctrl_c_while_starting_leaves_no_process(tiny_bundle: Bundle, tmp_path: Path, after_s: float) -> None:
    bundle = tmp_path / "bundle"  # so that every process of this service names tmp_path in its command line
    shutil.copytree(tiny_bundle.path, bundle)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": clean_environment()}
    process = subprocess.Popen(command(bundle, tmp_path / "data"), **quiet)  # type: ignore[call-overload]
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(after_s)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    await_end(mentioning(tmp_path))


def test_ctrl_c_during_the_imports_is_not_lost_where_python_ignores_exceptions(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        """
import os, signal, sys

class InDestructor:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(100_000))  # Python's own handler runs in here, where what it raises is ignored

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "service.settings":
            InDestructor()

sys.meta_path.insert(0, Finder())
"""
    )
    environment = clean_environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    process = subprocess.run(command(tiny_bundle.path, tmp_path / "data"), env=environment, timeout=60, check=False)
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_while_a_client_waits_ends_soon_and_cleanly(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        driver = Driver(Remote(service), conditioning_episodes=1)  # type: ignore[arg-type]
        driver.run_episode(final_reward=1.0)
        with socket.create_connection((service.pool.host, service.pool.port or 0)) as waiting:
            waiting.sendall(f"GET {driver.path}/finetuning?wait_s=60 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            for _ in range(3):
                assert service.get("/livez").status_code == 200  # by now the waiting request is at work
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 10
        assert "Traceback" not in service.log()


def test_a_killed_embedded_redis_is_started_again_with_its_sessions(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        driver = Driver(Remote(service))  # type: ignore[arg-type]
        driver.run_episode()
        driver.get("/task")  # waits for the inference that the episode's end began
        before = driver.get()
        (redis,) = running(service.process.pid, "redis-server")
        os.kill(redis, signal.SIGTERM)
        await_end([redis])
        reply = service.get("/readyz")
        while reply.status_code == 503:
            assert reply.json()["code"] == "storage_unavailable"
            reply = service.get("/readyz")
        assert reply.status_code == 200
        assert driver.get() == before
        assert service.stop() == 0


def test_a_second_service_on_the_same_data_directory_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        line = fails_to_start(tiny_bundle.path, tmp_path)
        assert "in use by another service" in line
        assert str(service.process.pid) in line
        assert service.get("/readyz").status_code == 200


def test_a_port_in_use_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        line = fails_to_start(tiny_bundle.path, tmp_path, "--port", port)
    assert port in line
    assert "in use" in line
    assert "--port" in line
    assert not (tmp_path / "redis.log").exists()


def test_a_redis_that_does_not_answer_is_named_without_its_password(tiny_bundle: Bundle, tmp_path: Path) -> None:
    line = fails_to_start(tiny_bundle.path, tmp_path, SKILLET_REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert "redis://127.0.0.1:1/0" in line
    assert "secret" not in line


def test_a_setting_out_of_range_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert "port" in fails_to_start(tiny_bundle.path, tmp_path, "--port", "70000")
    assert "kept_versions" in fails_to_start(tiny_bundle.path, tmp_path, SKILLET_KEPT_VERSIONS="0")


def break_byte(bundle: Path) -> None:
    data = bytearray((bundle / "skill_decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "skill_decoder.onnx").write_bytes(data)


def remove_file(bundle: Path) -> None:
    (bundle / "task_encoder.onnx").unlink()


def make_newer(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format_version": FORMAT_VERSION + 1}))


def change_manifest(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["golden"]["skill_decoder.onnx"]["outputs"]["action"][0][0] += 0.01
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def remove_all(bundle: Path) -> None:
    shutil.rmtree(bundle)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_byte, "skill_decoder.onnx"),
        (remove_file, "task_encoder.onnx"),
        (make_newer, f"format version {FORMAT_VERSION + 1}"),
        (change_manifest, "manifest.json"),
        (remove_all, "found none"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(tiny_bundle: Bundle, tmp_path: Path, damage: object, said: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.path, bundle)
    damage(bundle)  # type: ignore[operator]
    assert said in fails_to_start(bundle, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_large_body_over_a_real_connection_is_refused_and_the_connection_lives(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        path = Driver(Remote(service)).path  # type: ignore[arg-type]
        before = service.get(path).json()
        response = service.pool.request("POST", f"{path}/transitions", body=b"x" * 50_000_000)
        assert (response.status, response.json()["code"]) == (413, "body_too_large")
        assert service.get(path).json() == before
        assert service.post(f"{path}/step", **transition(0, 0, state(0, 1))).json()["code"] == "no_open_episode"


SMALL_SLICES = {"SKILLET_SLICE_UPDATES": "5", "SKILLET_CHECKPOINT_INTERVAL_S": "0"}


def caught_up(driver: Driver) -> dict[str, Any]:
    """The status once the learner owes nothing; the suite's time limit ends this if it never comes."""
    while True:
        status: dict[str, Any] = driver.get("/finetuning?wait_s=20")
        if status["episodes_learned"] == status["episodes_completed"] or status["state"] == "failed":
            return status


def learner_pid(service: RunningService) -> int:
    """From the line that says the service is ready."""
    return int(service.ready_line.rpartition("learner ")[2])


def test_a_learner_killed_in_the_middle_of_a_job_is_started_again_and_finishes_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_finetuning(tiny_bundle, tmp_path / "slow", warm_start_updates=100)
    with RunningService(bundle.path, tmp_path / "data", **SMALL_SLICES) as service:
        driver = Driver(Remote(service), conditioning_episodes=1)  # type: ignore[arg-type]
        driver.run_episode(final_reward=1.0)
        killed_at = 0
        while killed_at == 0:
            killed_at = driver.get("/finetuning?wait_s=0.1")["updates"]
        assert os.getpriority(os.PRIO_PROCESS, learner_pid(service)) == 10
        if (group := Path(f"/proc/{learner_pid(service)}/autogroup")).exists():
            assert group.read_text().split()[-1] == "10"
        os.kill(learner_pid(service), signal.SIGKILL)
        assert killed_at < 100
        status = caught_up(driver)
        assert (status["state"], status["updates"], status["episodes_learned"], status["policy_version"]) == ("idle", 100, 1, 1)
        assert driver.run_episode()[0]["policy_version"] == 1
        service.pids = [service.process.pid, *descendants(service.process.pid)]
        assert len(service.pids) == 5
        assert service.stop() == 0
        await_end(service.pids)


def test_a_learner_ends_without_taking_itself_apart(tiny_bundle: Bundle, redis_server: str, tmp_path: Path) -> None:
    """That waits for processor time on a busy machine; here it would take ten minutes."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, time\natexit.register(time.sleep, 600)\n")
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path), "SKILLET_REDIS_URL": redis_server}
    learner = subprocess.Popen([sys.executable, "-m", "service.worker", "--bundle", str(tiny_bundle.path)], env=environment)
    try:
        while not catches(learner.pid, signal.SIGTERM):
            assert learner.poll() is None
        learner.terminate()
        assert learner.wait(60) == 0
    finally:
        learner.kill()
        learner.wait()


def test_stopping_while_a_learner_works_leaves_no_process_and_the_work_goes_on_after(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_finetuning(tiny_bundle, tmp_path / "slow", warm_start_updates=1000)
    with RunningService(bundle.path, tmp_path / "data", **SMALL_SLICES) as service:
        driver = Driver(Remote(service), conditioning_episodes=1)  # type: ignore[arg-type]
        driver.run_episode(final_reward=1.0)
        while driver.get("/finetuning?wait_s=0.1")["updates"] == 0:
            pass
        assert service.stop() == 0
        await_end(service.pids)
    with RunningService(bundle.path, tmp_path / "data", **SMALL_SLICES) as service:
        driver.api = Remote(service)  # type: ignore[assignment]
        before = driver.get("/finetuning")
        assert 0 < before["updates"] < 1000
        status = caught_up(driver)
        assert (status["updates"], status["policy_version"]) == (1000, 1)
