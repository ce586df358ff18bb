"""Which task embedding an episode acts with: the same rule offline and in the service (SiMPL, section 4.3).

A session explores for ``K`` conditioning episodes with embeddings drawn from the task prior N(0, I), by Thompson sampling from what the
episodes before say of the task, or from both in turn. If none of them brought any reward there is nothing to infer a task from, so
it goes on exploring, every second episode with the plain skill prior (which reaches places that no training task asks for) unless it
explores by novelty, until the first reward comes. From then on it acts with the posterior's mean.
All randomness derives from (session seed, episode, step), so a session that is recovered or replayed acts the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from training.contract.belief import FOLLOW_SKILLS, Belief, Following
from training.contract.context import Floats

_EMBEDDING_STREAM = 0x7A5C
_SKILL_STREAM = 0x5C11
_DETOUR_STREAM = 0xDE70

_ROUNDING = 1e-6
"""Sums of the same rewards may differ by less."""


class Phase(StrEnum):
    """Where a session stands."""

    EXPLORING = "exploring"
    ADAPTED = "adapted"
    FINETUNING = "finetuning"


SWITCH_SKILLS = 40
"""Skills for which the `SWITCHING` exploration keeps an embedding: about as long as the way to a task takes."""

RECENT_EPISODES = 5
"""Episodes that tell what a session knows how to earn."""

EXPLORE_SKILLS = 4
"""Skills for which a session with nothing left to gain in its episode keeps the embedding that it explores with."""

DETOUR_SKILLS = 3
"""Skills that a detour takes: about one subtask."""

_DETOURS = (0.5, 20)
"""With what probability an episode takes a detour at first; and, divided by the episodes since conditioning, later."""

_DETOUR_UNTIL = 2 / 3
"""Up to which part of its best return an episode takes its detour: what comes after all of it is explored anyway (`nothing_left`)."""


class Exploration(StrEnum):
    """How conditioning episodes choose their embeddings.

    ``prior``: one for a whole episode, as SiMPL does. ``switching``: a new one every `SWITCH_SKILLS` skills, so that a long episode without
    reward tries several tasks rather than staying at one that is not the right one. ``thompson``: once there was a reward, one for a whole
    episode from the posterior of all complete episodes (Thompson sampling, as in PEARL: Rakelly et al. 2019, section 4.2), so that
    exploring goes on where the task is likely to be; until then as ``switching``, between the bundle's particles, embeddings of training
    tasks, where it has them. ``alternating``: the first conditioning episode and every second after it as ``switching``, whatever the
    posterior says, the others as ``thompson``: for a posterior that is sure too early repeats what brings no more. By either, where the
    task shows bit by bit (``finetuning.infer_again``), particles are acted with, in any episode, from the moment that there is nothing left
    to gain by what the session knows (`nothing_left`), for more can only come from what it has not tried; and with ``finetuning.detours``,
    while no episode completes its task, some take a detour on the way there (`detour_after`).
    ``belief``: until the first reward it follows particles of a belief over tasks, and gives one up for another as soon as what was
    seen rules it out (`training.contract.belief`); then the posterior's mean, and while no reward comes, draws from the posterior in
    turn that explain the rewards so far. ``novelty``: until the first reward it plans to go where it has not been
    (`training.contract.novelty`), whatever the tasks, for as long as it takes; then as ``belief``, and in any phase back along the way
    to a reward when an episode is overdue.
    """

    PRIOR = "prior"
    SWITCHING = "switching"
    THOMPSON = "thompson"
    ALTERNATING = "alternating"
    BELIEF = "belief"
    NOVELTY = "novelty"

    def nothing_left(self, *, earned: float, returns: Sequence[float]) -> bool:
        """Whether an episode that has ``earned`` so much can gain no more by what its session knows, whose episodes had these ``returns``.

        The newest `RECENT_EPISODES` tell: what one lucky episode earned long ago, the session does not know how to earn. Rewards are taken
        to be never negative, and few: where there is always more of the same to earn, an episode would stop short of it.
        """
        best = max(returns[-RECENT_EPISODES:], default=0.0)
        return self.samples_posterior and 0 < best <= earned + _ROUNDING

    def asks_posterior(self, phase: Phase, *, episode: int, rewarded: bool) -> bool:
        """Whether episode number ``episode`` (from 0), in ``phase``, explores with an embedding from the session's posterior."""
        if phase is not Phase.EXPLORING or not rewarded:
            return False
        return self.takes_turns or (self.samples_posterior and not self.keeps_to_task_prior(episode))

    @property
    def takes_turns(self) -> bool:
        """Whether, once rewarded, embeddings that explain the rewards take turns."""
        return self in (Exploration.BELIEF, Exploration.NOVELTY)

    @property
    def samples_posterior(self) -> bool:
        """Whether, once rewarded, embeddings of whole episodes are drawn from the posterior."""
        return self in (Exploration.THOMPSON, Exploration.ALTERNATING)

    def keeps_to_task_prior(self, episode: int) -> bool:
        """Whether conditioning episode number ``episode`` (from 0) takes N(0, I), whatever the posterior says."""
        return self is Exploration.ALTERNATING and episode % 2 == 0


@dataclass(frozen=True)
class EpisodePlan:
    """How one episode acts: with drawn embeddings, the first of them [E] (None: the posterior's mean), or with the plain skill prior.

    An embedding that was ``inferred``, from the posterior, stays for the whole episode, or is one of several [n, E] that take turns
    (`in_turn`); others may be redrawn (`drawn_embedding`), or follow a belief.
    """

    phase: Phase
    task_embedding: Floats | None
    use_skill_prior: bool = False
    inferred: bool = False


def automatic_phase(episode: int, conditioning_episodes: int, *, rewarded: bool, finetuned: bool) -> Phase:
    """The phase of episode number ``episode`` (from 0), unless the client forces one."""
    if episode < conditioning_episodes or (not rewarded and conditioning_episodes > 0):
        return Phase.EXPLORING
    return Phase.FINETUNING if finetuned else Phase.ADAPTED


def plan_episode(
    phase: Phase,
    *,
    seed: int,
    episode: int,
    conditioning_episodes: int,
    task_embedding_dim: int,
    exploration: Exploration = Exploration.SWITCHING,
    rewarded: bool,
    posterior: tuple[Floats, Floats] | None = None,
    candidates: Floats | None = None,
) -> EpisodePlan:
    """How episode number ``episode`` acts in ``phase``. ``rewarded``: whether there was a reward before it.

    ``posterior`` is the mean and scale [E] that exploring asks for (`Exploration.asks_posterior`), None where it does not; by
    belief, ``candidates`` [n, E] from it come instead.
    """
    if phase is not Phase.EXPLORING:
        return EpisodePlan(phase, None, inferred=True)
    if candidates is not None:
        return EpisodePlan(phase, candidates, inferred=True)
    if posterior is not None:
        mean, scale = posterior
        noise = drawn_embedding(Exploration.PRIOR, seed, episode, 0, task_embedding_dim)
        return EpisodePlan(phase, mean + scale * noise, inferred=True)
    overtime = episode - conditioning_episodes if exploration is not Exploration.NOVELTY and not rewarded else -1
    if overtime >= 0 and overtime % 2 == 1:
        return EpisodePlan(phase, None, use_skill_prior=True)
    return EpisodePlan(phase, drawn_embedding(exploration, seed, episode, 0, task_embedding_dim))


def drawn_embedding(exploration: Exploration, seed: int, episode: int, skill_index: int, task_embedding_dim: int) -> Floats:
    """The exploratory embedding [E], from N(0, I), with which skill number ``skill_index`` (from 0) of an episode is chosen."""
    draw = 0 if exploration is Exploration.PRIOR else skill_index // SWITCH_SKILLS
    generator = np.random.default_rng([_EMBEDDING_STREAM, seed, episode, draw])
    return generator.standard_normal(task_embedding_dim).astype(np.float32)


def exploratory_embedding(
    exploration: Exploration,
    belief: Belief | None,
    before: Following | None,
    state: Floats,
    *,
    seed: int,
    episode: int,
    skill_index: int,
    conditioning_episodes: int,
    rewarded: bool,
    task_embedding_dim: int,
    in_vain: bool = True,
) -> tuple[Floats, Following | None]:
    """The embedding [E] that is not inferred, with which skill number ``skill_index`` is chosen in ``state`` [S].

    With it, where that comes from the belief, what the session follows now; ``before``: what it followed (None: nothing yet).
    ``in_vain``: whether it is known that the state brought no reward, unless the session was ``rewarded``.
    """
    # Every second episode takes the skill prior then: no third kind beside it.
    fruitless = episode >= conditioning_episodes and not rewarded
    if belief is not None and exploration.samples_posterior and (fruitless or not exploration.keeps_to_task_prior(episode)):
        return belief.at_random(seed=seed, episode=episode, turn=skill_index // SWITCH_SKILLS), None
    if belief is None or exploration is not Exploration.BELIEF:
        return drawn_embedding(exploration, seed, episode, skill_index, task_embedding_dim), None
    now = belief.follow(
        before or belief.begin(), state, seed=seed, episode=episode, skill_index=skill_index, rewarded=rewarded, in_vain=in_vain
    )
    return belief.particles[now.particle], now


def embedding_beyond(belief: Belief, *, seed: int, episode: int, skill_index: int) -> Floats:
    """The embedding [E] with which a session that has nothing left to gain by what it knows chooses skill number ``skill_index``."""
    return belief.at_random(seed=seed, episode=episode, turn=skill_index // EXPLORE_SKILLS)


def detour_after(
    exploration: Exploration, *, seed: int, episode: int, conditioning_episodes: int, returns: Sequence[float], completed: Sequence[bool]
) -> float | None:
    """What episode number ``episode`` has earned when it takes its detour: `DETOUR_SKILLS` skills of the skill prior. None: it takes none.

    Where what the session knows ends short of its task, the step that is missing may have to come before what it does now, and fine-tuning
    never sees it. So while none of the newest `RECENT_EPISODES` has ``completed`` its task (ended it, and was rewarded), episodes leave the
    way at a random point before the most that the newest of them earned (``returns``), and go on from there by what the session knows: a
    temporally extended exploration (Dabney et al. 2021), which costs little. Half of the episodes at first; later their number grows with
    the logarithm of the episodes, as a task may never end.
    """
    since, best = episode - conditioning_episodes, max(returns[-RECENT_EPISODES:], default=0.0)
    if not exploration.samples_posterior or since < 0 or best <= 0 or any(completed[-RECENT_EPISODES:]):
        return None
    generator = np.random.default_rng([_DETOUR_STREAM, seed, episode])
    at_first, later = _DETOURS
    if generator.random() >= min(at_first, later / (since + 1)):
        return None
    return best * _DETOUR_UNTIL * float(1 - generator.random())  # above 0: it begins after a reward


def turns(episode_steps: int, skill_horizon: int) -> int:
    """How many embeddings take turns in a whole episode."""
    return max(1, -(-episode_steps // (skill_horizon * FOLLOW_SKILLS)))


def in_turn(embeddings: Floats, skill_index: int) -> Floats:
    """The embedding [E] of those that take turns [n, E] with which skill number ``skill_index`` is chosen."""
    turn: Floats = embeddings[skill_index // FOLLOW_SKILLS % len(embeddings)]
    return turn


def skill_noise(seed: int, episode: int, step: int, skill_dim: int) -> Floats:
    """Standard normal noise [Z] for the skill chosen at ``step`` of ``episode``; the same arguments always give the same numbers."""
    return np.random.default_rng([_SKILL_STREAM, seed, episode, step]).standard_normal(skill_dim).astype(np.float32)
