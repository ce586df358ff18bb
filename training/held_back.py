"""Episodes that a learner holds back, and what they say of a candidate policy against the one that serves.

The estimate is of how much an episode's discounted return would change, to first order, if skills were chosen as the candidate does rather
than as the serving policy does: the sum of advantages over the states of a held-back episode. It is doubly robust (Dudik et al. 2011): a
critic of the learner, which never saw these episodes, says what it expects of either policy's skills; and the skills that were chosen,
weighted by how much likelier each policy makes them than the policy that chose them did, correct it by what then happened. A wrong critic
is so found out where the policies overlap with what was done; and where they do not, the critic alone speaks, within the returns that were
seen. Weights are cut off and normalised by their sum, so that a critic that is wrong by the same amount everywhere changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.contract.context import Floats

HELD_EVERY: Final = 3
"""Of the episodes that did not explore, one in so many is held back."""

HELD_AT_MOST: Final = 8
"""Of those held back the newest are kept; older ones are learned from then."""

JUDGED_FROM: Final = 5
"""With fewer held-back episodes nothing is said: the exact test could not find anything significant."""

SIGNIFICANCE: Final = 0.05
"""A candidate is worse when so low an estimate would come about with a smaller probability than this if it lost no more than tolerated."""

TOLERATED: Final = 0.05
"""How much of the largest return that was seen an episode may lose: the critic's own errors are of this size, and of either sign."""

_WEIGHT_LIMIT: Final = 5.0
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class HeldEpisode:
    """An episode's skill transitions [n, D], and how likely its first k skills were under the policy that chose them: log densities [k].

    The others, if any, were chosen otherwise; a policy is not judged by them.
    """

    rows: Floats
    log_chosen: Floats

    @property
    def judged(self) -> Floats:
        """The transitions [k, D] that policies are judged by."""
        return self.rows[: len(self.log_chosen)]


@dataclass
class HeldBack:
    """The held-back episodes of one session, the oldest first."""

    episodes: list[HeldEpisode] = field(default_factory=list)
    offered: int = 0

    def offer(self, episode: HeldEpisode) -> list[Floats]:
        """Hold the episode back if its turn has come. Returns the rows of the episodes that are to be learned from now."""
        self.offered += 1
        if self.offered % HELD_EVERY:
            return [episode.rows]
        self.episodes.append(episode)
        older, self.episodes = self.episodes[:-HELD_AT_MOST], self.episodes[-HELD_AT_MOST:]
        return [each.rows for each in older]


@dataclass(frozen=True)
class Evidence:
    """What is known of one held-back episode's skills.

    [n] each: the discounted return that followed; log densities of the skill under the policy that chose it, the candidate and the serving
    policy. [critics, n] each: what the critics expect of that skill, and on average of the candidate's and of the serving policy's.
    """

    returned: Numbers
    log_chosen: Numbers
    log_candidate: Numbers
    log_serving: Numbers
    expected: Numbers
    expected_candidate: Numbers
    expected_serving: Numbers


@dataclass(frozen=True)
class Estimate:
    """How much an episode's discounted return would change, and how probable a change as low is if it lost no more than ``tolerated``."""

    change: float
    tolerated: float
    chance: float
    episodes: int

    @property
    def worse(self) -> bool:
        """Whether the candidate is significantly worse."""
        return self.chance < SIGNIFICANCE


def estimate_change(evidence: Sequence[Evidence]) -> Estimate | None:
    """The estimate; None when too few episodes were held back. An episode is one observation, for its skills are not independent.

    The critic that thinks best of the candidate is heard: chance is counted over episodes, and says nothing of a critic's own errors, on
    which different critics disagree. The probability is that of an exact test: how many of all ways to give the episodes' values signs have
    a mean as low.
    """
    if len(evidence) < JUDGED_FROM:
        return None
    returned = np.concatenate([each.returned for each in evidence])
    tolerated = TOLERATED * float(np.abs(returned).max())
    found = []
    for critic in range(len(evidence[0].expected)):
        values = _changes(evidence, critic, returned.min(), returned.max())
        chance = _chance(values + tolerated) if np.isfinite(values).all() else 0.0
        found.append(Estimate(float(values.mean()), tolerated, chance, len(values)))
    return max(found, key=lambda each: (each.chance, each.change))


def _changes(evidence: Sequence[Evidence], critic: int, low: float, high: float) -> Numbers:
    """How much each episode's return would change, as far as one critic can tell, within the returns that were seen. [episodes]."""
    surprise = [each.returned - np.clip(each.expected[critic], low, high) for each in evidence]
    candidate = _weighted([_weights(each.log_candidate - each.log_chosen) for each in evidence], surprise)
    serving = _weighted([_weights(each.log_serving - each.log_chosen) for each in evidence], surprise)
    expected = [
        np.clip(each.expected_candidate[critic], low, high) - np.clip(each.expected_serving[critic], low, high) for each in evidence
    ]
    return np.array([each.sum() for each in expected]) + candidate - serving


def _chance(values: Numbers) -> float:
    signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    return float(((signs * values).mean(1) <= values.mean() + 1e-12).mean())


def _weights(log_ratio: Numbers) -> Numbers:
    return np.asarray(np.exp(np.clip(log_ratio, -30.0, np.log(_WEIGHT_LIMIT))), np.float64)


def _weighted(weights: Sequence[Numbers], values: Sequence[Numbers]) -> Numbers:
    """Each episode's sum of the values' weighted mean, moved by the episode's own influence on that mean. [episodes]."""
    total = np.concatenate(weights)
    share = max(total.mean(), 1e-12)
    mean = float((total * np.concatenate(values)).sum() / max(total.sum(), 1e-12))
    return np.array([len(w) * mean + (w * (v - mean)).sum() / share for w, v in zip(weights, values, strict=True)])
