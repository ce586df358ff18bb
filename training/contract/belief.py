"""A belief over tasks: particles of task embeddings, weighed by where rewards were seen and where none was.

A learned reward decoder says how probable a reward is in a state for a task embedding (VariBAD, Zintgraf et al. 2020, learns one to train
its belief; here it weighs the particles). A state seen in vain speaks against every particle that expected a reward there: as far as it
expected one, and once, not once a visit, since a decoder that errs in a state errs there every time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.contract.context import Floats
from training.contract.novelty import Novelty

FOLLOW_SKILLS = 40
"""Skills for which an exploring session follows one embedding at most."""

RULED_OUT = 0.5
"""A particle is given up when its plausibility falls below this share of what it was when it was chosen."""

UNREACHED = 0.8
"""What a particle's plausibility is multiplied by when its time is up and it was not ruled out: perhaps it leads nowhere."""

SHARPNESS = 3.0
"""A particle is chosen with a probability that is proportional to this power of its plausibility."""

CANDIDATES = 64
"""Embeddings drawn from the task posterior, of which those are acted with that explain the rewards."""

LEAST = 1e-6
"""Least probability and plausibility: no decoder is certain."""

_PARTICLE_STREAM = 0xBE11
_CANDIDATE_STREAM = 0xCA4D
_RANDOM_STREAM = 0x4A2D

RewardProbability = Callable[[Floats, Floats], Floats]
"""Probability of a reward, float32 [B], in states [B, S] for task embeddings [B, E]."""


@dataclass(frozen=True)
class Following:
    """What an exploring session has ruled out, and what it follows.

    ``plausibility`` float32 [P] of each particle; the ``particle`` that is followed since skill number ``since`` of the episode, with its
    plausibility at the time, ``hope``.
    """

    plausibility: Floats
    particle: int = -1
    since: int = 0
    hope: float = 1.0


@dataclass(frozen=True)
class Belief:
    """The particles [P, E] of a bundle and its reward decoder; ``novelty`` where it offers that. Holds nothing of a session."""

    particles: Floats
    reward_probability: RewardProbability
    novelty: Novelty | None = None

    def begin(self) -> Following:
        """Before anything was seen: every particle is as plausible as every other."""
        return Following(np.ones(len(self.particles), np.float32))

    def follow(
        self, before: Following, state: Floats, *, seed: int, episode: int, skill_index: int, rewarded: bool, in_vain: bool = True
    ) -> Following:
        """Which particle to act with for skill number ``skill_index`` of an episode, chosen in ``state`` [S].

        A ``rewarded`` session has seen no state in vain, and stays with what it follows; nor has one that does not know yet whether the
        state brought a reward (not ``in_vain``). The same arguments give the same answer.
        """
        if rewarded and before.particle >= 0 and skill_index > 0:
            return before
        plausibility = before.plausibility if rewarded or not in_vain else self.seen_in_vain(before.plausibility, state)
        ruled_out, late = False, skill_index == 0
        if skill_index > 0 and before.particle >= 0:
            ruled_out = plausibility[before.particle] < RULED_OUT * before.hope
            late = skill_index - before.since >= FOLLOW_SKILLS
            if late and not ruled_out:
                plausibility = plausibility.copy()
                plausibility[before.particle] = max(plausibility[before.particle] * UNREACHED, LEAST)
        if not (late or ruled_out or before.particle < 0):
            return replace(before, plausibility=plausibility)
        particle = _drawn(plausibility**SHARPNESS, np.random.default_rng([_PARTICLE_STREAM, seed, episode, skill_index]))
        return Following(plausibility, particle, skill_index, float(plausibility[particle]))

    def at_random(self, *, seed: int, episode: int, turn: int) -> Floats:
        """A particle [E], each as probable as another; the same arguments give the same one."""
        number = np.random.default_rng([_RANDOM_STREAM, seed, episode, turn]).integers(len(self.particles))
        particle: Floats = self.particles[number]
        return particle

    def seen_in_vain(self, plausibility: Floats, state: Floats) -> Floats:
        """Plausibility [P] after ``state`` [S] brought no reward."""
        states = np.repeat(state[None], len(self.particles), 0)
        expected = self.reward_probability(states, self.particles)
        return np.maximum(np.minimum(plausibility, 1 - expected), np.float32(LEAST))

    def candidates(self, mean: Floats, scale: Floats, rewarded: Floats, *, seed: int, episode: int, count: int) -> Floats:
        """``count`` embeddings [count, E] to act with in turn: the posterior's mean [E], then draws from it (``scale`` [E]).

        Of `CANDIDATES` draws those are taken, at random, that explain the rewards seen in the states ``rewarded`` [n, S].
        """
        generator = np.random.default_rng([_CANDIDATE_STREAM, seed, episode])
        drawn = mean + scale * generator.standard_normal((CANDIDATES, len(mean))).astype(np.float32)
        weights = self.explaining(drawn, rewarded)
        chosen = [_drawn(weights, generator) for _ in range(count - 1)]
        return np.concatenate([mean[None], drawn[chosen]]).astype(np.float32)

    def explaining(self, embeddings: Floats, rewarded: Floats) -> Floats:
        """How well each embedding [M, E] explains rewards in the states ``rewarded`` [n, S]: their probabilities' geometric mean, [M]."""
        if not len(rewarded):
            return np.ones(len(embeddings), np.float32)
        states = np.repeat(rewarded, len(embeddings), 0)
        expected = self.reward_probability(states, np.tile(embeddings, (len(rewarded), 1)))
        logs: Floats = np.log(np.maximum(expected, LEAST)).reshape(len(rewarded), -1)
        explained: Floats = np.exp(logs.mean(0))
        return explained

    def weights(self, plausibility: Floats, rewarded: Floats) -> Floats:
        """Weight [P] of each particle, together 1, by what was seen in vain and the states ``rewarded`` [n, S]."""
        weights = plausibility * self.explaining(self.particles, rewarded)
        shares: Floats = weights / weights.sum()
        return shares


def effective_number(weights: Floats) -> float:
    """How many particles count: 1 / sum of squared weights [P] (which together are 1)."""
    return float(1 / np.square(weights, dtype=np.float64).sum())


def entropy(weights: Floats) -> float:
    """Entropy of weights [P] in nats."""
    positive = weights[weights > 0].astype(np.float64)
    return float(-(positive * np.log(positive)).sum())


def _drawn(weights: Floats, generator: np.random.Generator) -> int:
    """An index, drawn by weights [M]."""
    cumulated: NDArray[np.float64] = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(cumulated, generator.random() * cumulated[-1], side="right")), len(weights) - 1)
