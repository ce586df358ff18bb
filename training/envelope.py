"""Learning a bundle's safety envelope from the offline data, whatever the domain."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.contract.envelope import Envelope
from training.contract.spec import ModelSpec
from training.data import Episode

MARGIN = 0.1
"""Share of a range that is added at either end of it."""

CHANGE_QUANTILE = 0.999
"""The largest changes in noisy data are outliers: one in a thousand is beyond the limit, before the margin."""

WILD_RANGES = 10.0
"""An observation is refused this many ranges (of at least one unit each) outside the data."""

_LEAST_MARGIN = 1e-3  # of an entry that never changes in the data


def learn_envelope(episodes: Sequence[Episode], spec: ModelSpec) -> Envelope:
    """The envelope of offline episodes: the range of actions and observations and an action's usual change, each with a margin.

    Actions stay inside the spec's limits. Raises ValueError for no episodes, other lengths than the spec's, or numbers that are not finite.
    """
    if not episodes:
        raise ValueError("expected offline episodes to learn a safety envelope from, got none")
    actions = _range([episode.actions for episode in episodes], spec.action_dim)
    observations = _range([episode.observations for episode in episodes], spec.state_dim)
    low, high = _widened(*actions)
    low, high = np.maximum(low, spec.action.low), np.minimum(high, spec.action.high)
    usual_low, usual_high = _widened(*observations)
    wild = WILD_RANGES * np.maximum(observations[1] - observations[0], 1.0)
    steps = sum(len(episode) for episode in episodes)
    return Envelope(
        action_low=_numbers(low),
        action_high=_numbers(high),
        action_change=_numbers(_usual_change(episodes, high - low)),
        observation_low=_numbers(usual_low),
        observation_high=_numbers(usual_high),
        refused_low=_numbers(usual_low - wild),
        refused_high=_numbers(usual_high + wild),
        source=f"{len(episodes)} offline episodes, {steps} steps; margin {MARGIN:g}, change quantile {CHANGE_QUANTILE:g}",
    )


def _range(arrays: list[NDArray[np.float32]], dim: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if any(array.shape[1] != dim for array in arrays):
        raise ValueError(f"expected vectors of {dim} entries in the offline data, got {sorted({array.shape[1] for array in arrays})}")
    low = np.min([array.min(0, initial=np.inf) for array in arrays], 0).astype(np.float64)
    high = np.max([array.max(0, initial=-np.inf) for array in arrays], 0).astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("expected finite numbers in the offline data, and at least one step")
    return low, high


def _widened(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    margin = np.maximum(MARGIN * (high - low), _LEAST_MARGIN)
    return low - margin, high + margin


def _usual_change(episodes: Sequence[Episode], full: NDArray[np.float64]) -> NDArray[np.float64]:
    """The change that all but the rarest steps stay below, with a margin [A]; the full range where the data never change."""
    changes = np.concatenate([np.abs(np.diff(episode.actions.astype(np.float64), axis=0)) for episode in episodes])
    if not len(changes):
        return full
    usual = np.quantile(changes, CHANGE_QUANTILE, axis=0) * (1 + MARGIN)
    return np.where(usual > 0, np.minimum(usual, full), full)


def _numbers(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(values.tolist())
