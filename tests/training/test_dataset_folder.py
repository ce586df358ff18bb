import shutil
from pathlib import Path

import numpy as np
import pytest
from minari.dataset.minari_storage import MinariStorage
from minari.storage import remotes
from minari.storage.remotes.cloud_storage import CloudStorage

from training.data import Episode, load_episodes, write_minari
from training.dataset_folder import download_dataset
from training.simulators.maze import MAZE_ENV_ID

DATASET = "testing/maze-v0"
EPISODE = Episode(np.arange(24, dtype=np.float32).reshape(6, 4) / 100, np.full((5, 2), 0.5, np.float32))


class FolderRemote(CloudStorage):
    """A folder as Minari's server, so that downloads run without a network."""

    def __init__(self, name, token=None):
        self.folder = Path(name)

    def list_datasets(self, prefix=None):
        return [DATASET]

    def get_dataset_metadata(self, dataset_id):
        return MinariStorage.read_raw_metadata(self.folder / dataset_id / "data")

    def download_dataset(self, dataset_id, path):
        shutil.copytree(self.folder / dataset_id, path / dataset_id)

    def download_namespace_metadata(self, namespace, path):
        (path / namespace).mkdir(parents=True, exist_ok=True)

    def list_namespaces(self):
        return ["testing"]

    upload_dataset = upload_namespace = None


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A server with one dataset."""
    write_minari([EPISODE], DATASET, MAZE_ENV_ID, description="to be downloaded", root=tmp_path / "remote")
    monkeypatch.setitem(remotes._registry, "folder", lambda: FolderRemote)
    monkeypatch.setenv("MINARI_REMOTE", f"folder://{tmp_path / 'remote'}")
    return FolderRemote


def test_a_dataset_is_downloaded_when_it_is_not_there_and_not_again(remote, tmp_path, monkeypatch):
    root, said = tmp_path / "local", []
    download_dataset(DATASET, said.append, root=root)
    assert said == [f"{DATASET} is not in {root}: downloading it from Minari's server, which may take minutes"]
    np.testing.assert_array_equal(load_episodes(DATASET, root=root)[0].observations, EPISODE.observations)
    monkeypatch.setattr(remote, "download_dataset", lambda *_: pytest.fail("downloaded again"))
    download_dataset(DATASET, said.append, root=root)
    assert len(said) == 1


def test_an_interrupted_download_leaves_nothing_that_could_be_loaded(remote, tmp_path, monkeypatch):
    def interrupted(self, dataset_id, path):
        (path / dataset_id / "data").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "download_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_dataset(DATASET, lambda _: None, root=tmp_path / "local")
    assert list((tmp_path / "local").iterdir()) == []


def test_a_dataset_that_the_server_does_not_have_is_told_with_the_nearest_that_is_there(remote, tmp_path):
    with pytest.raises(ConnectionError, match=r"found testing/maze-v0 \(the nearest is 'testing/maze-v0'\).*ValueError: .*testing/maze-v7"):
        download_dataset("testing/maze-v7", lambda _: None, root=tmp_path / "remote")


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    with pytest.raises(ConnectionError) as caught:
        download_dataset("D4RL/kitchen/mixed-v2", lambda _: None, root=tmp_path)
    text = str(caught.value)
    assert text.startswith(f"expected the dataset in {tmp_path}, found none; it cannot be downloaded either (OfflineModeIsEnabled: ")
    assert f"run 'minari download D4RL/kitchen/mixed-v2' where there is one and copy the dataset's folder to {tmp_path}/D4RL" in text


def test_an_id_without_a_version_is_refused_before_anything_is_downloaded(tmp_path):
    with pytest.raises(ValueError, match="expected a Minari id such as 'namespace/name-v0', got 'D4RL/kitchen/mixed'"):
        download_dataset("D4RL/kitchen/mixed", lambda _: pytest.fail("began to download"), root=tmp_path)
