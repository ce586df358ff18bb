"""Statistics of results."""

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(values: NDArray[np.float64], rng: np.random.Generator, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of ``values`` [n]."""
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
