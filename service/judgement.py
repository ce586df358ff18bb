"""Whether the returns under the newest policy versions have fallen, so that the session should go back; and whether they are again what
they were, so that it should go on. Pure functions of what happened.

The last few episodes are compared with those before them by an exact permutation test of the mean return, one-sided: how often would a
fall this large come about if the order of the episodes meant nothing? Exploring episodes say nothing of a version and are left out, as are
those that were to take a detour, and what an episode earned by exploring beyond what its session knew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from msgspec import Struct

from service.session_state import EpisodeRecord
from training.contract.exploration import Phase

RECENT: Final = (3, 4, 5)
"""How many of the newest episodes are judged: the first number that shows a fall counts."""

REFERENCE: Final = (5, 10)
"""With how many episodes before them they are compared: at least, at most."""

SIGNIFICANCE: Final = 0.005
STILL_LOW: Final = 0.2
"""With a probability of at most this, returns are held to be lower still than before the fall."""


class Fallback(Struct, frozen=True):
    """What a session went back from by itself: to which version, after which episode, and the returns of the episodes before the fall."""

    version: int
    episode: int
    returns: list[float]


class Fallen(Struct, frozen=True):
    """Versions ``first`` to ``last`` were gone back from."""

    first: int
    last: int

    def holds(self, version: int) -> bool:
        """Whether this version is one of them."""
        return self.first <= version <= self.last


@dataclass(frozen=True)
class Fall:
    """A significant fall of returns: which versions to go back to, the best choice first, and why; and the returns before it."""

    versions: list[int]
    reason: str
    before: list[float]


def find_fall(records: Sequence[EpisodeRecord], current: int, fallen: Sequence[Fallen] = ()) -> Fall | None:
    """The fall under ``current`` and the versions since the reference, if there is one. ``records`` in order, the newest last.

    Episodes of versions that were gone back from (``fallen``) are no reference. The best choice is the version of the middle of the
    reference: a fall that comes slowly is noticed when the newest versions before it are no longer good.
    """
    known = [
        record
        for record in records
        if record.phase is not Phase.EXPLORING
        and record.versions_used
        and not any(gone.holds(version) for gone in fallen for version in record.versions_used)
    ]
    for count in RECENT:
        recent, reference = known[-count:], known[-count - REFERENCE[1] : -count]
        if len(reference) < REFERENCE[0] or max(recent[-1].versions_used) != current:
            return None
        newest = max(reference[-1].versions_used)
        if newest >= min(min(record.versions_used) for record in recent):
            continue
        before, after = _returns(reference), _returns(recent)
        chance = chance_of_fall(before, after)
        if chance <= SIGNIFICANCE:
            return Fall(
                list(dict.fromkeys(max(record.versions_used) for record in reference[len(reference) // 2 :])),
                f"the mean return fell from {before.mean():.3g} in {len(before)} episodes to {after.mean():.3g} in {len(after)} "
                f"under versions {newest + 1} to {current} (by chance with probability {chance:.2g})",
                before.tolist(),
            )
    return None


def find_recovery(records: Sequence[EpisodeRecord], fallback: Fallback) -> str | None:
    """Why a session that went back may learn on: its returns since are not significantly lower than before the fall. None: not yet."""
    since = [record for record in records if record.episode > fallback.episode and record.versions_used == [fallback.version]]
    if len(since) < RECENT[-1]:
        return None
    after, before = _returns(since[-RECENT[-1] :]), np.array(fallback.returns)
    if chance_of_fall(before, after) <= STILL_LOW:
        return None
    return f"the mean return is {after.mean():.3g} in {len(after)} episodes since, and was {before.mean():.3g} before it fell"


def chance_of_fall(before: np.ndarray, after: np.ndarray) -> float:
    """Probability of a mean as low as that of ``after`` [n] if any n of all episodes could have been the last."""
    together = np.concatenate([before, after])
    chosen = np.array(list(combinations(range(len(together)), len(after))))
    means = together[chosen].mean(1)
    return float((means <= after.mean() + 1e-9).mean())


def _returns(records: Sequence[EpisodeRecord]) -> np.ndarray:
    return np.array([record.known_return for record in records])
