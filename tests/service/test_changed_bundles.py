"""A bundle that changes on disk below a running service."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.policies import Networks
from service.settings import Settings
from tests.conftest import Driver, state
from tests.service.running import Remote, RunningService, await_end, running
from tests.tiny_bundle import with_finetuning
from training.contract.bundle import Bundle
from training.contract.spec import SKILL_DECODER


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that may be changed."""
    return Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def kill(service: RunningService, what: str) -> None:
    (pid,) = running(service.process.pid, what)
    os.kill(pid, signal.SIGKILL)
    await_end([pid])


def await_log(service: RunningService, *said: str) -> None:
    """Wait until one line says all of it."""
    deadline = time.monotonic() + 60
    while not any(all(part in line for part in said) for line in service.log().splitlines()):
        assert time.monotonic() < deadline, service.log()
        time.sleep(0.05)


def test_an_api_process_that_cannot_start_again_says_why_and_does_once_the_file_is_back(bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(bundle.path, tmp_path / "data", "--no-learner", SKILLET_STANDBY_WORKERS="0") as service:
        whole = bundle.read(SKILL_DECODER)
        (bundle.path / SKILL_DECODER).write_bytes(b"x")
        kill(service, "service.api_worker")
        await_log(service, "ERROR", SKILL_DECODER, f"expected {len(whole)} bytes, found 1")
        (bundle.path / SKILL_DECODER).write_bytes(whole)
        assert service.get("/readyz").status_code == 200


def test_a_bundle_that_took_the_place_of_the_one_served_is_not_served_before_a_restart(bundle: Bundle, tmp_path: Path) -> None:
    with RunningService(bundle.path, tmp_path / "data", SKILLET_STANDBY_WORKERS="0") as service:
        driver = Driver(Remote(service))  # type: ignore[arg-type]
        driver.start()
        digest = driver.session["bundle"]["digest"]
        shutil.copytree(bundle.path, tmp_path / "old")
        other = with_finetuning(bundle, bundle.path, warm_start_updates=1).manifest.digest
        for what, said in (("service.api_worker", "ERROR"), ("service.worker", "skillet learner")):
            kill(service, what)
            await_log(service, said, other[:12], digest[:12], "restart the service", "put the old bundle back")
        shutil.rmtree(bundle.path)
        shutil.move(tmp_path / "old", bundle.path)
        assert driver.act(0, 0, state(0, 0))["step"] == 0
        assert service.get("/v1/bundles").json()["bundles"][0]["digest"] == digest


def test_a_file_that_changed_is_no_internal_error(bundle: Bundle, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(create_app(settings, {"tiny": Networks(bundle)})) as api:
        whole, path = bundle.read(SKILL_DECODER), f"/v1/bundles/tiny/{SKILL_DECODER}"
        for change in (lambda file: file.write_bytes(b"x"), Path.unlink):
            change(bundle.path / SKILL_DECODER)
            answer = api.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert "changed on disk" in answer.json()["detail"]
            assert "Restart the service" in answer.json()["action"]
            assert str(bundle.path) not in answer.text
            assert str(bundle.path) in caplog.records[-1].message
        (bundle.path / SKILL_DECODER).write_bytes(whole)
        assert api.get(path).content == whole
