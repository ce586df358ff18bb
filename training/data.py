"""Offline episodes, and the Minari datasets that they are written to and read from."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from training.dataset_folder import appearing_whole, check_id, dataset_root, datasets_in, is_there, nearest, what_is_there

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer


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

    def checked(self, observation_entries: Sequence[int] | None = None) -> "Episode":
        """The same with only these entries of each observation, in this order; None keeps all.

        Raises ValueError when there is no such entry, or a number is not finite.
        """
        width = self.observations.shape[1]
        if observation_entries is not None and not all(0 <= entry < width for entry in observation_entries):
            raise ValueError(
                f"expected observation_entries from 0 to {width - 1}, as observations have {width}, got {max(observation_entries)}"
            )
        observations = self.observations if observation_entries is None else self.observations[:, list(observation_entries)]
        for name, values in (("observations", observations), ("actions", self.actions)):
            if not np.isfinite(values).all():
                row, entry = np.argwhere(~np.isfinite(values))[0]
                raise ValueError(f"expected finite {name}, found {values[row, entry]} in row {row}, entry {entry}")
        return Episode(observations, self.actions)


def write_minari(
    episodes: Sequence[Episode],
    dataset_id: str,
    env_id: str,
    *,
    description: str,
    observation_key: str | None = None,
    root: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write episodes as a Minari dataset, with rewards of zero and every episode ended by truncation.

    The dataset appears under its name only when it is whole: an interrupted write leaves nothing that could be loaded.

    Args:
        episodes: at least one.
        dataset_id: Minari id ``namespace/name-vN``; the namespace needs two letters or more.
        env_id: Gymnasium id (``module:namespace/Name-vN``) of the environment that the observations and actions belong to.
        description: what the data are, for whoever finds the dataset.
        observation_key: write a dict with this one key; its vectors may be of any width, and the dataset then names no environment.
        root: folder of local datasets; default ``MINARI_DATASETS_PATH`` or ``data/minari``.
        overwrite: replace a dataset of this id.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: the dataset is there already and ``overwrite`` is off.
        ValueError: ``dataset_id`` is no Minari id.
    """
    import minari

    check_id(dataset_id)
    root = dataset_root(root)
    if (root / dataset_id).exists() and not overwrite:
        raise FileExistsError(f"the dataset {dataset_id} exists in {root}; delete it, choose another id or ask to overwrite it")
    env = gym.make(env_id)
    origin: dict[str, Any] = {"env": env}
    if observation_key is not None:
        box = gym.spaces.Box(-np.inf, np.inf, episodes[0].observations.shape[1:], np.float32)
        origin = {"observation_space": gym.spaces.Dict({observation_key: box}), "action_space": env.action_space}
    with appearing_whole(dataset_id, root), warnings.catch_warnings():
        # Minari warns of every optional field that is left out (author, e-mail, link).
        warnings.simplefilter("ignore", UserWarning)
        buffers = [_buffer(episode, observation_key) for episode in episodes]
        minari.create_dataset_from_buffers(dataset_id, buffers, description=description, **origin)
    env.close()
    return root / dataset_id


def load_episodes(
    dataset_id: str, observation_key: str | None = None, observation_entries: Sequence[int] | None = None, *, root: Path | None = None
) -> list[Episode]:
    """Read every episode of a Minari dataset as float32.

    Args:
        dataset_id: Minari id, e.g. ``skillet/maze-v0`` or ``D4RL/kitchen/mixed-v2``.
        observation_key: entry to take where observations are a dict (for goal environments often ``observation``).
        observation_entries: which entries of the observation vector to take, in this order; None for all.
        root: folder of local datasets; default ``MINARI_DATASETS_PATH`` or ``data/minari``.

    Raises:
        FileNotFoundError: no such dataset; the message names those that are there.
        ValueError: observations or actions are not flat boxes of floating-point numbers or not finite, or key or entries are wrong.
    """
    import minari

    root = dataset_root(root)
    if not is_there(dataset_id, root):
        raise FileNotFoundError(f"expected the dataset {dataset_id} in {root}, found {what_is_there(dataset_id, root)}")
    with datasets_in(root):
        dataset = minari.load_dataset(dataset_id)
        _check_spaces(dataset, observation_key)
        return [_read_episode(data, observation_key, observation_entries) for data in dataset.iterate_episodes()]


def _read_episode(data: Any, key: str | None, entries: Sequence[int] | None) -> Episode:
    observations = data.observations if key is None else data.observations[key]
    try:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
            return Episode(np.asarray(observations, np.float32), np.asarray(data.actions, np.float32)).checked(entries)
    except ValueError as error:
        raise ValueError(f"episode {data.id}: {error}") from error


def _check_spaces(dataset: "MinariDataset", key: str | None) -> None:
    space = dataset.observation_space
    if isinstance(space, gym.spaces.Dict):
        keys = list(space)
        if key not in keys:
            raise ValueError(
                f"{dataset.id} has dict observations: expected observation_key among {keys}, got {key!r}{nearest(key or '', keys)}"
            )
        space = space[key]
    elif key is not None:
        raise ValueError(f"{dataset.id} has no dict observations: expected observation_key null, got {key!r}")
    for name, box in (("observations", space), ("actions", dataset.action_space)):
        if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1 or not np.issubdtype(box.dtype, np.floating):
            raise ValueError(f"{dataset.id}: expected {name} in a flat Box of floating-point numbers, got {box}")


def _buffer(episode: Episode, observation_key: str | None) -> "EpisodeBuffer":
    from minari.data_collector import EpisodeBuffer

    truncations = np.zeros(len(episode), bool)
    truncations[-1] = True
    return EpisodeBuffer(
        observations=episode.observations if observation_key is None else {observation_key: episode.observations},
        actions=episode.actions,
        rewards=np.zeros(len(episode), np.float32),
        terminations=np.zeros(len(episode), bool),
        truncations=truncations,
    )
