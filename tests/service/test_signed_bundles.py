"""A service that is told whose bundles to serve."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.app import load_bundles
from service.settings import Settings
from service.worker import main as learner
from tests.conftest import Driver
from tests.key_files import write_pair
from tests.service.running import Remote, RunningService, fails_to_start
from training.__main__ import main as training
from training.contract.bundle import Bundle
from training.contract.errors import BundleUnsigned


@pytest.fixture
def signed(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A signed bundle; the public key lies beside it as ``key.pub.pem``, another one as ``other.pub.pem``."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.path, path)
    private, _ = write_pair(tmp_path, "key", Ed25519PrivateKey.generate())
    write_pair(tmp_path, "other", Ed25519PrivateKey.generate())
    assert training(["sign", "--bundle", str(path), "--key", str(private)]) == 0
    return path


def test_a_signed_bundle_is_served_and_learned_from(signed: Path, tmp_path: Path) -> None:
    with RunningService(signed, tmp_path / "data", "--bundle-key", str(tmp_path / "key.pub.pem")) as service:
        driver = Driver(Remote(service), conditioning_episodes=1)  # type: ignore[arg-type]
        driver.run_episode(final_reward=1.0)
        driver.run_episode(final_reward=1.0)
        assert driver.get("/finetuning?wait_s=60")["episodes_learned"] >= 1


def test_another_key_s_bundle_is_not_served(signed: Path, tmp_path: Path) -> None:
    line = fails_to_start(signed, tmp_path / "data", "--bundle-key", str(tmp_path / "other.pub.pem"))
    assert "none of the keys that are trusted" in line
    assert "other.pub.pem" in line


def test_an_unsigned_bundle_is_not_served(tiny_bundle: Bundle, signed: Path, tmp_path: Path) -> None:
    line = fails_to_start(tiny_bundle.path, tmp_path / "data", "--bundle-key", str(tmp_path / "key.pub.pem"))
    assert "found none; sign it with" in line


def test_a_key_that_is_none_is_named(signed: Path, tmp_path: Path) -> None:
    line = fails_to_start(signed, tmp_path / "data", SKILLET_BUNDLE_KEYS=f'["{tmp_path}/none.pem"]')
    assert f"cannot read the key {tmp_path}/none.pem" in line


def test_every_process_looks_for_itself(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle may be exchanged after the service has started and before a process is started again."""
    other = tmp_path / "other.pub.pem"
    with pytest.raises(BundleUnsigned):
        load_bundles(Settings(bundles=(signed,), bundle_keys=(other,)))
    monkeypatch.setenv("SKILLET_REDIS_URL", "redis://127.0.0.1:1")
    assert learner(["--bundle", str(signed), "--bundle-key", str(other)]) == 2
    assert "none of the keys" in capsys.readouterr().err
