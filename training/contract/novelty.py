"""Exploration by novelty: plans, with a model of where skills lead, to states unlike any that the session has been in; and back to rewards.

Before the first reward nothing is known of the task, and where an embedding leads has mostly been seen. So at every skill sequences of
skills are drawn from the skill prior, imagined one after the other with a learned model of their outcomes (as SkiMo plans with: Shi et al.
2022), and the first skill of the sequence that comes to most new places is the next (planning to explore: Sekar et al. 2020). Which states
are one place, the training tasks' rewards tell: `training.skill_dynamics`.

Once rewarded, a session acts by what it has inferred and learned. Where an episode has brought nothing by when it should have, as in a task
unlike those of meta-training, it plans along the way of its best episode (to return first, as Go-Explore does: Ecoffet et al. 2021), and
in the next one from the beginning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.contract.context import ContextLayout, Floats

SEQUENCES = 32
"""Sequences of skills that are imagined for every choice."""

SKILLS_AHEAD = 12
"""Skills of a sequence."""

NEARNESS = 0.97
"""What a new place is worth less for each skill that it lies farther ahead."""

WEAR = 0.8
"""What a place is worth each time that it is aimed at, as a share of before: the model may expect what cannot be reached."""

SEEN_SPACING = 0.5
"""A state is kept when it lies farther than this from all that are kept; a place is new beyond 1."""

MOST_KEPT = 1024
"""States seen, places aimed at, and points of a track that are kept, the newest."""

WAYS = 64
"""Of how many episodes, the newest, a session's route is the shortest."""

NEAR = 0.5
"""A state within this of a point of a route is at that point."""

HASTE = 0.002
"""What each skill that a point of a route lies ahead takes from its progress, as a share of the route."""

PATIENCE, GRACE = 1.5, 5
"""An episode is overdue after this many times the skills of the session's route, and so many more."""

_PLAN_STREAM = 0x9A17

Imagine = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""Skills float32 [B, Z] that the skill prior draws in states [B, S] with standard normal noise [B, Z], and the states [B, S] after them."""


@dataclass(frozen=True)
class Places:
    """Where a session has been, in the coordinates of `Novelty`, float32 each.

    Until its first reward what it has ``seen`` [m, R], and what its episode has ``aimed`` at [k, R]; then its ``route`` [n, R] to a reward
    (n = 0: none is known), and the ``track`` [k, R] of its episode.
    """

    seen: Floats
    aimed: Floats
    track: Floats
    route: Floats


@dataclass(frozen=True)
class Novelty:
    """A bundle's model of where skills lead, and its ``projection`` float32 [R, S]: states whose images lie within 1 are one place."""

    projection: Floats
    imagine: Imagine

    def begin(self) -> Places:
        """Before anything was seen."""
        nothing = np.zeros((0, len(self.projection)), np.float32)
        return Places(nothing, nothing, nothing, nothing)

    def plan(self, before: Places, state: Floats, *, seed: int, episode: int, skill_index: int, skill_dim: int) -> tuple[Floats, Places]:
        """The skill [Z] for skill number ``skill_index`` of an episode, chosen in ``state`` [S]. The same arguments give the same one.

        Where no sequence comes to anything new it is a draw from the skill prior.
        """
        here = self._images(state[None])[0]
        seen, aimed = before.seen, before.aimed if skill_index else before.aimed[:0]
        if not len(seen) or _nearest(here[None], seen)[0] > SEEN_SPACING:
            seen = np.concatenate([seen, here[None]])[-MOST_KEPT:]
        first, ahead = self._imagined(state, _noise(seed, episode, skill_index, skill_dim))
        reach = np.sqrt(_squared(here[None], ahead.reshape(-1, len(here))).max())
        within_reach = _squared(here[None], seen)[0] <= (reach + 1) ** 2  # of all that was seen, what can make a place no new one
        worth, target = _worth(ahead, seen[within_reach], aimed)
        best = int(worth.argmax())
        if worth[best] > 0:
            aimed = np.concatenate([aimed, ahead[target[best], best][None]])[-MOST_KEPT:]
        return first[best], replace(before, seen=seen, aimed=aimed)

    def with_route(self, ways: Sequence[Floats]) -> Places:
        """For an episode of a session whose rewarded episodes went these ``ways``: states [n, S] each, the last of them the rewarded one.

        The shortest counts, once what led back to where it had been before is left out.
        """
        routes = [_without_loops(self._images(way)) for way in ways]
        return replace(self.begin(), route=min(routes, key=len)) if routes else self.begin()

    def on_the_way(self, before: Places, state: Floats, *, skill_index: int) -> Places:
        """``before`` with the state [S] in which an episode's skill number ``skill_index`` is chosen on its track."""
        return replace(before, track=np.concatenate([before.track[:skill_index], self._images(state[None])])[-MOST_KEPT:])

    def retrace(self, places: Places, state: Floats, *, seed: int, episode: int, skill_index: int, skill_dim: int) -> Floats:
        """The skill [Z], chosen in ``state`` [S], of an episode that goes back along its track and then the session's route.

        It leaves the track wherever that crosses the route. The same arguments give the same skill.
        """
        way = np.concatenate([places.track[::-1], places.route])
        first, ahead = self._imagined(state, _noise(seed, episode, skill_index, skill_dim))
        length, count, width = ahead.shape
        at = _squared(ahead.reshape(-1, width), way) <= NEAR**2
        progress = np.where(at, np.arange(1, len(way) + 1), 0).max(1).reshape(length, count)
        worth = progress - HASTE * len(way) * np.arange(length)[:, None]
        chosen: Floats = first[int(worth.max(0).argmax())]
        return chosen

    def _images(self, states: Floats) -> Floats:
        """Of states [B, S], [B, R]."""
        images: Floats = np.einsum("bs,rs->br", states, self.projection)
        return images

    def _imagined(self, state: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """First skills [N, Z], and images [L, N, R] of the states that sequences drawn with ``noise`` [L, N, Z] come to."""
        states, first = np.repeat(state[None], noise.shape[1], 0), None
        ahead = np.empty((*noise.shape[:2], len(self.projection)), np.float32)
        for step, each in enumerate(noise):
            skills, states = self.imagine(states, each)
            first = skills if first is None else first
            ahead[step] = self._images(states)
        assert first is not None
        return first, ahead


def overdue(places: Places, skill_index: int, *, earned: float) -> bool:
    """Whether an episode that has ``earned`` so much before skill number ``skill_index`` should have brought something, by its route."""
    return earned == 0 and len(places.route) > 0 and skill_index >= PATIENCE * len(places.route) + GRACE


def goes_back_at_once(beyond_from: int) -> bool:
    """Whether an episode goes back from its beginning, after one that went back from step ``beyond_from`` on (-1: it did not).

    After one that was overdue it does; the next may try again by what the session has learned since.
    """
    return beyond_from > 0


def ways_to_rewards(episodes: Sequence[Floats], layout: ContextLayout) -> list[Floats]:
    """States [n, S] from the beginning of each episode, skill transitions [k, D], to its first reward; of those that brought one."""
    ways = []
    for rows in episodes:
        if len(rewarded := np.flatnonzero(rows[:, layout.reward])):
            upto = rows[: rewarded[0] + 1]
            ways.append(np.concatenate([upto[:, layout.state], upto[-1:, layout.next_state]]))
    return ways


def _noise(seed: int, episode: int, skill_index: int, skill_dim: int) -> Floats:
    """Standard normal [L, N, Z] for the sequences of one choice."""
    generator = np.random.default_rng([_PLAN_STREAM, seed, episode, skill_index])
    return generator.standard_normal((SKILLS_AHEAD, SEQUENCES, skill_dim)).astype(np.float32)


def _without_loops(way: Floats) -> Floats:
    """The points of a way [n, R] that remain when every point is followed by the one after the last that is near to it."""
    near = _squared(way, way) <= NEAR**2 / 4
    last_near = len(way) - 1 - near[:, ::-1].argmax(1)
    kept, at = [], 0
    while at < len(way):
        kept.append(at)
        at = int(last_near[at]) + 1
    if kept and kept[-1] != len(way) - 1:
        kept.append(len(way) - 1)
    return way[kept]


def _worth(ahead: Floats, seen: Floats, aimed: Floats) -> tuple[Floats, Floats]:
    """How much new sequences [L, N, R] come to, [N], and the step [N] at which each comes to its first new place."""
    length, count, width = ahead.shape
    flat = ahead.reshape(-1, width)
    far = (_nearest(flat, seen) > 1).reshape(length, count)
    worn = np.float32(WEAR) ** (_squared(flat, aimed) < SEEN_SPACING**2).sum(1).reshape(length, count)
    worn = np.minimum.accumulate(worn)  # what lies behind a place is not reached more easily
    worth, target = np.zeros(count, np.float32), np.full(count, -1)
    new = np.zeros((length, count), bool)
    for step in range(length):
        among = np.square(ahead[:step] - ahead[step]).sum(-1) <= 1  # [step, N]: within reach of a new place earlier on the way
        new[step] = far[step] & ~(among & new[:step]).any(0)
        target = np.where(new[step] & (target < 0), step, target)
        worth += new[step] * worn[step] * np.float32(NEARNESS**step)
    return worth, target


def _nearest(points: Floats, others: Floats) -> Floats:
    """Distance [n] of each point [n, R] to the nearest of others [m, R], m > 0."""
    distance: Floats = np.sqrt(_squared(points, others).min(1))
    return distance


def _squared(points: Floats, others: Floats) -> Floats:
    """Squared distances [n, m]. Without matrix products, whose bits may depend on how many there are: plans are repeated to the bit."""
    squares = np.zeros((len(points), len(others)), np.float32)
    for coordinate, other in zip(points.T, others.T, strict=True):
        squares += np.square(coordinate[:, None] - other)
    return squares
