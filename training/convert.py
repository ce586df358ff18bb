"""``python -m training.convert FILE.npz DATASET_ID --config kitchen``: recorded arrays as a Minari dataset, for ``data.minari``.

The file holds ``observations`` [steps + episodes, S], ``actions`` [steps, A] and ``lengths`` [episodes]: the episodes one after the other,
each with one observation more than it has actions. Observations are kept whole: which entries are used is ``data.observation_entries``.
"""

import argparse
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from rich.console import Console

from training.config import TrainingConfig, load_config, presets
from training.contract.errors import ConfigError, SkilletError
from training.data import Episode, write_minari
from training.dataset_folder import nearest
from training.offline import fit_environment

ARRAYS = ("observations", "actions", "lengths")


def read_npz(file: Path) -> list[Episode]:
    """The episodes of a file of arrays.

    Raises:
        ValueError: an array is missing, or their shapes do not fit each other.
    """
    with np.load(file, allow_pickle=False) as stored:
        if missing := [name for name in ARRAYS if name not in stored.files]:
            raise ValueError(f"expected the arrays {', '.join(ARRAYS)}, found {stored.files}{nearest(missing[0], stored.files)}")
        observations, actions, lengths = (stored[name] for name in ARRAYS)
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer) or not len(lengths) or lengths.min() < 1:
        raise ValueError(f"expected lengths [episodes] of whole numbers from 1, got {lengths.dtype} {lengths.shape}")
    steps, episodes = int(lengths.sum()), len(lengths)
    for name, array, rows in (("observations", observations, steps + episodes), ("actions", actions, steps)):
        if array.ndim != 2 or len(array) != rows or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"expected {name} [{rows}, entries] of floating-point numbers for {episodes} episodes of {steps} steps, "
                f"got {array.dtype} {list(array.shape)}"
            )
    ends = np.cumsum(lengths)[:-1]
    parts = zip(np.split(observations, ends + np.arange(1, episodes)), np.split(actions, ends), strict=True)
    return [Episode(observed.astype(np.float32), acted.astype(np.float32)) for observed, acted in parts]


def convert(file: Path, dataset_id: str, config: TrainingConfig, *, overwrite: bool = False) -> tuple[Path, list[Episode]]:
    """Write a file's episodes as a dataset whose observations are a dict with the key ``data.observation_key``, as Minari's goal datasets.

    Returns its folder and the episodes as they were in the file.

    Raises:
        ConfigError: the file does not fit, or not to the environment, or the dataset is there and ``overwrite`` is off.
    """
    try:
        episodes = read_npz(file)
        env = gym.make(config.domain.env_id)
        fit_environment([episode.checked(config.data.observation_entries) for episode in episodes], env)
        env.close()
        key, description = config.data.observation_key, f"Reward-free {config.domain.name} trajectories, converted from arrays."
        path = write_minari(episodes, dataset_id, config.domain.env_id, description=description, observation_key=key, overwrite=overwrite)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{file} to {dataset_id}: {error}") from error
    return path, episodes


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one file. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.convert", description="Convert recorded arrays to a Minari dataset.")
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="arrays observations, actions and lengths")
    parser.add_argument("dataset_id", metavar="DATASET_ID", help="e.g. mine/kitchen-v0")
    parser.add_argument("--config", required=True, help=f"a preset ({', '.join(presets())}) or a TOML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="e.g. --set data.observation_key=null"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of this id")
    options = parser.parse_args(arguments)
    console, began = Console(stderr=True, highlight=False), time.monotonic()
    try:
        config = load_config(options.config, options.overrides)
        path, episodes = convert(options.file, options.dataset_id, config, overwrite=options.overwrite)
    except SkilletError as error:
        console.print(f"error: {error}", soft_wrap=True, markup=False)
        return 2
    lengths = [len(episode) for episode in episodes]
    console.print(
        f"{path}: {len(lengths)} episodes of {min(lengths)} to {max(lengths)} steps, {sum(lengths)} in all, "
        f"{time.monotonic() - began:.1f} s; train on it with --set data.minari={options.dataset_id}",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
