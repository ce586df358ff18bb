"""The offline data that skills are extracted from: the project's own demonstrations, or any Minari dataset that fits the environment."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from training.config import TrainingConfig
from training.contract.errors import ConfigError
from training.data import Episode, load_episodes
from training.dataset_folder import download_dataset

ACTION_TOLERANCE = 1e-5
"""How far past the environment's limits an action may lie: rounding to float32."""


def offline_episodes(config: TrainingConfig, env: gym.Env[Any, Any], say: Callable[[str], None]) -> list[Episode]:
    """The episodes of a configuration, fit for its environment; a dataset named by ``data.minari`` is downloaded when it is not there.

    Only observations and actions are read: rewards, infos and how episodes end are ignored. ``say`` gets lines for the person who waits.

    Raises:
        ConfigError: the dataset is not there, or does not fit the environment; the message says what to do.
    """
    data, own = config.offline_data, not config.data.minari
    dataset_id = str(data.minari)
    try:
        if not own:
            download_dataset(dataset_id, say)
        episodes = load_episodes(dataset_id, data.observation_key, data.observation_entries)
        fitted, clipped = fit_environment(episodes, env)
    except (OSError, ValueError) as error:
        made_by = f"(python -m training collect --config {config.domain.name} makes the offline data)"
        raise ConfigError(f"{error} {made_by}" if own else f"data.minari={dataset_id}: {error}") from error
    note = f"; {clipped} observations clipped to the environment's limits" if clipped else ""
    say(f"offline data: {len(fitted)} episodes, {sum(map(len, fitted))} steps of {dataset_id}{note}")
    return fitted


def fit_environment(episodes: list[Episode], env: gym.Env[Any, Any]) -> tuple[list[Episode], int]:
    """The episodes with observations clipped to the environment's limits, as it clips its own, and how many observations that changed.

    Raises ValueError when observations or actions have another number of entries than the environment's, or actions exceed its limits.
    """
    observed, acted = env.observation_space, env.action_space
    assert isinstance(observed, gym.spaces.Box)
    assert isinstance(acted, gym.spaces.Box)
    fitted, clipped = [], 0
    for index, episode in enumerate(episodes):
        _check_width("observations", observed, episode.observations.shape[1], "; choose them with data.observation_entries")
        _check_width("actions", acted, episode.actions.shape[1], "")
        beyond = np.maximum(acted.low - episode.actions, episode.actions - acted.high).max(initial=0)
        if beyond > ACTION_TOLERANCE:
            raise ValueError(
                f"expected actions in {acted}, found one {beyond:.3g} beyond in episode {index}; scale or clip the data's actions"
            )
        observations = np.clip(episode.observations, observed.low, observed.high)
        clipped += int((observations != episode.observations).any(axis=1).sum())
        fitted.append(Episode(observations, episode.actions))
    return fitted, clipped


def _check_width(name: str, space: gym.spaces.Box, found: int, advice: str) -> None:
    if space.shape != (found,):
        raise ValueError(f"expected {name} of {space.shape[0]} entries, as the environment's, found {found}{advice}")
