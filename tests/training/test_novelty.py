"""Exploring by novelty in worlds of one or two coordinates, in which a skill is a step."""

import numpy as np
import pytest

import training.contract.novelty as module
from tests.training.tiny import LAYOUT
from training.contract.novelty import GRACE, PATIENCE, SEQUENCES, Novelty, Places, _worth, overdue, ways_to_rewards

LINE = np.array([[1.0, 0.0]], np.float32)
"""The first entry of the state is the place; the second does not count."""


def stepping(states, noise):
    """Each skill moves by half of itself, wherever it begins."""
    return noise, states + 0.5 * noise


def having_seen(seen):
    return Places(seen, seen[:0], seen[:0], seen[:0])


def explore(novelty, steps, world=lambda place: place, episode=0, places=None, start=0.0):
    """A session in a world that lets skills move to `world` of where they would go. Returns where it was, and what it has seen."""
    state, been = np.array([start, 0.0], np.float32), []
    places = places or novelty.begin()
    for index in range(steps):
        skill, places = novelty.plan(places, state, seed=3, episode=episode, skill_index=index, skill_dim=2)
        state = np.array([world(state[0] + 0.5 * skill[0]), 7.0 * index], np.float32)
        been.append(state[0])
    return np.array(been), places


def test_it_goes_on_and_on_where_drawn_skills_would_come_and_go():
    been, _ = explore(Novelty(LINE, stepping), 80)
    drawn = 0.5 * np.random.default_rng(0).standard_normal((200, 80)).cumsum(1)
    assert np.ptp(been) > 1.5 * np.quantile(np.ptp(drawn, axis=1), 0.95)


def test_from_what_it_has_seen_it_goes_where_it_has_not():
    seen = np.arange(-20, 0.5, 0.4, dtype=np.float32)[:, None]
    places = having_seen(seen)
    been, _ = explore(Novelty(LINE, stepping), 20, places=places)
    assert been[-1] > 3


def test_the_same_arguments_give_the_same_skill_and_others_another():
    novelty, state = Novelty(LINE, stepping), np.zeros(2, np.float32)
    seen = novelty.plan(novelty.begin(), state, seed=1, episode=2, skill_index=3, skill_dim=2)[1]
    asked = {"seed": 1, "episode": 2, "skill_index": 4, "skill_dim": 2}
    one, same = (novelty.plan(seen, state, **asked)[0] for _ in range(2))
    np.testing.assert_array_equal(one, same)
    for changed in ({"seed": 2}, {"episode": 3}, {"skill_index": 5}):
        assert not np.array_equal(one, novelty.plan(seen, state, **asked | changed)[0])


def test_what_it_aims_at_in_vain_wears_off(monkeypatch):
    """The model knows nothing of a wall at 1; everything down to -3 has been seen."""
    seen = np.arange(-3, 1.1, 0.4, dtype=np.float32)[:, None]

    def lowest():
        return explore(Novelty(LINE, stepping), 300, world=lambda place: min(place, 1.0), places=having_seen(seen))[0].min()

    assert lowest() < -6
    monkeypatch.setattr(module, "WEAR", 1.0)
    assert lowest() > -2


def test_aims_end_with_the_episode_and_what_was_seen_stays():
    novelty = Novelty(LINE, stepping)
    _, first = explore(novelty, 20)
    assert len(first.aimed)
    _, second = explore(novelty, 1, episode=1, places=first)
    assert len(second.aimed) <= 1
    np.testing.assert_array_equal(second.seen[: len(first.seen)], first.seen)


def test_places_are_kept_apart_and_not_without_end(monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 9)
    _, places = explore(Novelty(LINE, stepping), 200)
    assert len(places.seen) == 9
    assert np.abs(np.diff(places.seen[:, 0])).min() > 0.5


def test_a_place_counts_once_in_a_sequence_and_less_the_later_it_comes():
    seen, none = np.zeros((1, 1), np.float32), np.zeros((0, 1), np.float32)
    stays, goes, late = [2.0, 2.1, 2.2], [2.0, 3.5, 5.0], [0.1, 0.2, 2.0]
    worth, target = _worth(np.array([stays, goes, late], np.float32).T[..., None], seen, none)
    assert worth == pytest.approx([1, 1 + 0.97 + 0.97**2, 0.97**2])
    assert target.tolist() == [0, 0, 2]
    worn, _ = _worth(np.array([stays], np.float32).T[..., None], seen, np.array([[2.0], [2.3], [9.0]], np.float32))
    assert worn == pytest.approx([0.8**2])


def test_with_nothing_new_in_reach_it_draws_from_the_prior():
    seen = np.arange(-50, 50, 0.4, dtype=np.float32)[:, None]
    skill, places = Novelty(LINE, stepping).plan(having_seen(seen), np.zeros(2, np.float32), seed=3, episode=0, skill_index=0, skill_dim=2)
    assert not len(places.aimed)
    drawn = np.random.default_rng([0x9A17, 3, 0, 0]).standard_normal((SEQUENCES, 2))
    np.testing.assert_allclose(skill, drawn[0], rtol=1e-6)


def on_a_line(*places):
    """States at these places."""
    return np.stack([np.array(places, np.float32), np.zeros(len(places), np.float32)], 1)


def test_the_route_is_the_shortest_way_without_its_detours():
    novelty = Novelty(LINE, stepping)
    detour, longer = on_a_line(0, 1, 2, 3, 2.1, 1.1, 0.1, -1, -2), on_a_line(0, 1, 2, 3, 4, 5, 6)
    assert novelty.with_route([longer, detour]).route[:, 0].tolist() == pytest.approx([0, -1, -2])
    assert len(novelty.with_route([]).route) == 0
    assert novelty.with_route([on_a_line(0, 3)]).route[:, 0].tolist() == [0, 3]
    ends_near_where_it_was = on_a_line(0, 1, 0.1)
    assert novelty.with_route([ends_near_where_it_was]).route[:, 0].tolist() == pytest.approx([0, 0.1])


def retrace(novelty, places, start, steps):
    state, been = on_a_line(start)[0], []
    for index in range(len(places.track), len(places.track) + steps):
        places = novelty.on_the_way(places, state, skill_index=index)
        skill = novelty.retrace(places, state, seed=3, episode=1, skill_index=index, skill_dim=2)
        state = on_a_line(state[0] + 0.5 * skill[0])[0]
        been.append(state[0])
    return np.array(been)


def test_it_goes_back_along_the_route():
    novelty = Novelty(LINE, stepping)
    places = novelty.with_route([on_a_line(*np.arange(0, -8.1, -0.4))])
    assert retrace(novelty, places, 0.0, 40).min() < -7.5


def test_it_finds_the_route_by_the_track_that_led_away_from_it():
    novelty = Novelty(LINE, stepping)
    places = novelty.with_route([on_a_line(*np.arange(0, -8.1, -0.4))])
    for index, place in enumerate(np.arange(0, 6, 0.4)):  # the other way, out of sight of the route
        places = novelty.on_the_way(places, on_a_line(place)[0], skill_index=index)
    assert retrace(novelty, places, 6.0, 60).min() < -7.5


def test_a_new_episode_has_a_new_track():
    novelty = Novelty(LINE, stepping)
    places = novelty.with_route([on_a_line(0, 1)])
    for index in range(4):
        places = novelty.on_the_way(places, on_a_line(index)[0], skill_index=index)
    assert places.track[:, 0].tolist() == [0, 1, 2, 3]
    assert novelty.on_the_way(places, on_a_line(9)[0], skill_index=0).track[:, 0].tolist() == [9]


def test_an_episode_is_overdue_when_it_takes_longer_than_the_route_and_has_earned_nothing():
    novelty = Novelty(LINE, stepping)
    places = novelty.with_route([on_a_line(*range(11))])
    limit = PATIENCE * 11 + GRACE
    assert [overdue(places, index, earned=0.0) for index in (int(limit) - 1, int(limit), int(limit) + 1)] == [False, False, True]
    assert not overdue(places, 100, earned=1.0)
    assert not overdue(novelty.begin(), 100, earned=0.0)


def test_ways_end_where_the_first_reward_came():
    rows = np.zeros((4, LAYOUT.width), np.float32)
    rows[:, LAYOUT.state], rows[:, LAYOUT.next_state] = np.arange(4)[:, None], np.arange(4)[:, None] + 1
    rewarded = rows.copy()
    rewarded[2:, LAYOUT.reward] = 1
    (way,) = ways_to_rewards([rows, rewarded], LAYOUT)
    assert way[:, 0].tolist() == [0, 1, 2, 3]
