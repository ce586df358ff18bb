"""Whether the returns under the newest policy versions have fallen, so that the session should go back. Pure functions of what happened.

The last few episodes are compared with those before them by an exact permutation test of the mean return, one-sided: how often would a
fall this large come about if the order of the episodes meant nothing? Exploring episodes say nothing of a version and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from service.session_state import EpisodeRecord
from training.contract.exploration import Phase

RECENT: Final = (3, 4, 5)
"""How many of the newest episodes are judged: the first number that shows a fall counts."""

REFERENCE: Final = (5, 10)
"""With how many episodes before them they are compared: at least, at most."""

SIGNIFICANCE: Final = 0.005


@dataclass(frozen=True)
class Fall:
    """A significant fall of returns: which version to go back to, and why."""

    version: int
    reason: str


def find_fall(records: Sequence[EpisodeRecord], current: int) -> Fall | None:
    """The fall under ``current`` and the versions since the reference, if there is one. ``records`` in order, the newest last."""
    known = [record for record in records if record.phase is not Phase.EXPLORING and record.versions_used]
    for count in RECENT:
        recent, reference = known[-count:], known[-count - REFERENCE[1] : -count]
        if len(reference) < REFERENCE[0] or max(recent[-1].versions_used) != current:
            return None
        version = max(reference[-1].versions_used)
        if version >= min(min(record.versions_used) for record in recent):
            continue
        before, after = _returns(reference), _returns(recent)
        chance = chance_of_fall(before, after)
        if chance <= SIGNIFICANCE:
            return Fall(
                version,
                f"the mean return fell from {before.mean():.3g} in {len(before)} episodes to {after.mean():.3g} in {len(after)} "
                f"under versions {version + 1} to {current} (by chance with probability {chance:.2g})",
            )
    return None


def chance_of_fall(before: np.ndarray, after: np.ndarray) -> float:
    """Probability of a mean as low as that of ``after`` [n] if any n of all episodes could have been the last."""
    together = np.concatenate([before, after])
    chosen = np.array(list(combinations(range(len(together)), len(after))))
    means = together[chosen].mean(1)
    return float((means <= after.mean() + 1e-9).mean())


def _returns(records: Sequence[EpisodeRecord]) -> np.ndarray:
    return np.array([record.episode_return for record in records])
