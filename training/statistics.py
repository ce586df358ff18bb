"""Statistics of results."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def task_means(values: NDArray[np.float64], tasks: Sequence[Hashable]) -> NDArray[np.float64]:
    """Means [T, ...] over the runs of each task, in the tasks' first order, of ``values`` [runs, ...].

    Runs of one task are alike, so that an interval over all runs would be too narrow: draw tasks, and say something of further tasks.
    """
    known = list(dict.fromkeys(tasks))
    return np.stack([values[[index for index, task in enumerate(tasks) if task == wanted]].mean(0) for wanted in known])


def bootstrap_interval(values: NDArray[np.float64], rng: np.random.Generator, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of ``values`` [n]."""
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
