"""Offline episodes and the Minari datasets that hold them."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer

DEFAULT_ROOT = Path("data/minari")
"""Where datasets lie unless ``MINARI_DATASETS_PATH`` says otherwise."""


@dataclass(frozen=True)
class Episode:
    """One reward-free trajectory of ``L`` steps; observations hold one row more than actions."""

    observations: NDArray[np.float32]  # [L + 1, S]
    actions: NDArray[np.float32]  # [L, A]

    def __post_init__(self) -> None:
        if self.observations.ndim != 2 or self.actions.ndim != 2 or len(self.observations) != len(self.actions) + 1:
            raise ValueError(f"expected observations [L + 1, S] and actions [L, A], got {self.observations.shape} and {self.actions.shape}")

    def __len__(self) -> int:
        """Number of steps (L)."""
        return len(self.actions)


def write_minari(
    episodes: Sequence[Episode], dataset_id: str, env_id: str, *, description: str, root: Path | None = None, overwrite: bool = False
) -> Path:
    """Write episodes as a Minari dataset, with rewards of zero and every episode ended by truncation.

    The dataset appears under its name only when it is whole: an interrupted write leaves nothing that could be loaded.

    Args:
        episodes: at least one.
        dataset_id: Minari id ``namespace/name-vN``; the namespace needs two letters or more.
        env_id: Gymnasium id (``module:namespace/Name-vN``) of the environment that the observations and actions belong to.
        description: what the data are, for whoever finds the dataset.
        root: folder of local datasets; default ``MINARI_DATASETS_PATH`` or ``data/minari``.
        overwrite: replace a dataset of this id.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: the dataset is there already and ``overwrite`` is off.
    """
    import minari

    root = _root(root)
    target = root / dataset_id
    if target.exists() and not overwrite:
        raise FileExistsError(f"the dataset {dataset_id} exists in {root}; delete it, choose another id or ask to overwrite it")
    root.mkdir(parents=True, exist_ok=True)
    env = gym.make(env_id)
    with tempfile.TemporaryDirectory(dir=root, prefix=".writing-") as scratch, _datasets_in(Path(scratch)), warnings.catch_warnings():
        # Minari warns of every optional field that is left out (author, e-mail, link).
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(dataset_id, [_buffer(episode) for episode in episodes], env=env, description=description)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(scratch) / dataset_id).rename(target)
    env.close()
    return target


def load_episodes(
    dataset_id: str, observation_key: str | None = None, *, root: Path | None = None, download: bool = False
) -> list[Episode]:
    """Read every episode of a Minari dataset as float32.

    Args:
        dataset_id: Minari id, e.g. ``skillet/maze-v0`` or ``D4RL/kitchen/mixed-v2``.
        observation_key: entry to take where observations are a dict (for goal environments often ``observation``).
        root: folder of local datasets; default ``MINARI_DATASETS_PATH`` or ``data/minari``.
        download: fetch the dataset from Minari's server when it is not there; never done unasked.

    Raises:
        FileNotFoundError: no such dataset; the message names those that are there.
        ValueError: observations or actions are not flat boxes, or the key is missing or wrong.
    """
    import minari

    root = _root(root)
    if not (root / dataset_id / "data").exists() and not download:
        raise FileNotFoundError(f"expected the dataset {dataset_id} in {root}, found {_local_ids(root)}; collect it or ask to download it")
    with _datasets_in(root):
        dataset = minari.load_dataset(dataset_id, download=download)
        _check_spaces(dataset, observation_key)
        return [_read_episode(data, observation_key) for data in dataset.iterate_episodes()]


def _read_episode(data: Any, observation_key: str | None) -> Episode:
    observations = data.observations if observation_key is None else data.observations[observation_key]
    return Episode(np.asarray(observations, np.float32), np.asarray(data.actions, np.float32))


def _check_spaces(dataset: "MinariDataset", observation_key: str | None) -> None:
    space = dataset.observation_space
    if isinstance(space, gym.spaces.Dict):
        if observation_key not in space.spaces:
            raise ValueError(f"{dataset.id} has dict observations: expected observation_key among {list(space)}, got {observation_key!r}")
        space = space[observation_key]
    elif observation_key is not None:
        raise ValueError(f"{dataset.id} has no dict observations: expected observation_key None, got {observation_key!r}")
    for name, box in (("observations", space), ("actions", dataset.action_space)):
        if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1:
            raise ValueError(f"{dataset.id}: expected {name} in a flat Box, got {box}")


def _buffer(episode: Episode) -> "EpisodeBuffer":
    from minari.data_collector import EpisodeBuffer

    truncations = np.zeros(len(episode), bool)
    truncations[-1] = True
    return EpisodeBuffer(
        observations=episode.observations,
        actions=episode.actions,
        rewards=np.zeros(len(episode), np.float32),
        terminations=np.zeros(len(episode), bool),
        truncations=truncations,
    )


def _root(root: Path | None) -> Path:
    return Path(root or os.environ.get("MINARI_DATASETS_PATH") or DEFAULT_ROOT).resolve()


def _local_ids(root: Path) -> str:
    return ", ".join(sorted(str(path.parent.relative_to(root)) for path in root.glob("**/data") if path.is_dir())) or "none"


@contextmanager
def _datasets_in(root: Path) -> Iterator[None]:
    """Point Minari at a folder of datasets; the environment variable is the only way that it takes one."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
