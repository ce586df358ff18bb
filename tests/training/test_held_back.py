"""What held-back episodes say of a candidate: a world of one skill number whose best is known, and critics that know it or do not."""

import numpy as np
import pytest

from training.held_back import HELD_AT_MOST, HELD_EVERY, JUDGED_FROM, SIGNIFICANCE, Evidence, HeldBack, HeldEpisode, estimate_change

SKILLS, SPREAD = 12, 0.5


def worth(skills):
    """Best at 1: 1, at 0: 0.37."""
    return np.exp(-((skills - 1.0) ** 2))


def log_normal(values, mean):
    return -0.5 * ((values - mean) / SPREAD) ** 2 - np.log(SPREAD) - 0.5 * np.log(2 * np.pi)


def evidence(rng, candidate, *, serving=0.6, critics=(worth,), noise=0.2):
    """An episode of skills drawn around ``serving``; each skill's return is its own worth, and noise."""
    skills = rng.normal(serving, SPREAD, SKILLS)
    drawn = {mean: rng.normal(mean, SPREAD, (64, SKILLS)) for mean in (candidate, serving)}
    return Evidence(
        returned=worth(skills) + noise * rng.standard_normal(SKILLS),
        log_chosen=log_normal(skills, serving),
        log_candidate=log_normal(skills, candidate),
        log_serving=log_normal(skills, serving),
        expected=np.array([critic(skills) for critic in critics]),
        expected_candidate=np.array([critic(drawn[candidate]).mean(0) for critic in critics]),
        expected_serving=np.array([critic(drawn[serving]).mean(0) for critic in critics]),
    )


def judged(seed, candidate, *, episodes=HELD_AT_MOST, **options):
    rng = np.random.default_rng(seed)
    return estimate_change([evidence(rng, candidate, **options) for _ in range(episodes)])


def ignorant(skills):
    return np.zeros_like(skills)


def fond_of_the_wrong(skills):
    """Thinks that -1 is best."""
    return np.exp(-((skills + 1.0) ** 2))


def raised(skills):
    return worth(skills) + 0.3


@pytest.mark.parametrize("critic", [worth, raised])
def test_a_candidate_that_is_much_worse_is_found_and_a_better_one_passes(critic):
    assert all(judged(seed, -0.6, critics=(critic,)).worse for seed in range(20))
    found = [judged(seed, 1.0, critics=(critic,)) for seed in range(20)]
    assert not any(each.worse for each in found)
    assert np.mean([each.change for each in found]) > 0


@pytest.mark.parametrize("critic", [ignorant, fond_of_the_wrong])
def test_what_happened_corrects_a_critic_that_is_wrong(critic):
    """Of these critics one sees no difference and the other the opposite one."""
    changes = [judged(seed, 0.2, critics=(critic,)).change for seed in range(30)]
    truth = SKILLS * (
        worth(np.random.default_rng(0).normal(0.2, SPREAD, 10**5)).mean()
        - worth(np.random.default_rng(0).normal(0.6, SPREAD, 10**5)).mean()
    )
    assert truth < -1
    assert np.mean(changes) < 0.5 * truth


def test_a_critic_that_errs_by_the_same_everywhere_changes_nothing():
    wide = {"noise": 0.0}  # nothing is cut off at the returns that were seen
    assert judged(3, 0.5, critics=(lambda skills: 0 * skills + 0.4,), **wide).change == pytest.approx(
        judged(3, 0.5, critics=(lambda skills: 0 * skills + 0.6,), **wide).change
    )


@pytest.mark.parametrize("critics", [(worth,), (ignorant,), (worth, ignorant)])
def test_an_equally_good_candidate_is_refused_no_more_often_than_chance_allows(critics):
    refused = [judged(seed, 0.6, critics=critics).worse for seed in range(200)]
    assert np.mean(refused) <= SIGNIFICANCE


def test_a_loss_that_is_tolerated_is_not_held_against_a_candidate_however_sure_it_is():
    found = judged(0, 0.595, noise=0.0)
    assert -found.tolerated < found.change < 0
    assert not found.worse


def test_the_critic_that_thinks_best_of_the_candidate_is_heard():
    options = {"noise": 0.0}
    alone = [judged(0, -0.6, critics=(critic,), **options) for critic in (worth, fond_of_the_wrong)]
    assert judged(0, -0.6, critics=(worth, fond_of_the_wrong), **options) == max(alone, key=lambda each: (each.chance, each.change))


def test_numbers_that_are_not_finite_are_worse():
    rng = np.random.default_rng(0)
    broken = [evidence(rng, 0.6, critics=(lambda skills: skills * np.nan,)) for _ in range(JUDGED_FROM)]
    found = estimate_change(broken)
    assert found.worse
    assert np.isnan(found.change)


def test_too_few_episodes_say_nothing_and_the_first_that_do_can_refuse():
    assert judged(0, -0.6, episodes=JUDGED_FROM - 1) is None
    assert judged(0, -0.6, episodes=JUDGED_FROM).worse


def test_returns_that_are_all_zero_hold_nothing_against_anybody():
    rng = np.random.default_rng(0)
    nothing = [evidence(rng, -0.6, critics=(ignorant,), noise=0.0) for _ in range(JUDGED_FROM)]
    nothing = [Evidence(0 * each.returned, *list(vars(each).values())[1:]) for each in nothing]
    assert not estimate_change(nothing).worse


def test_one_in_so_many_is_held_back_and_the_oldest_are_learned_from_then():
    held, learned = HeldBack(), []
    episodes = [
        HeldEpisode(np.full((2, 3), number, np.float32), np.zeros(2, np.float32)) for number in range(HELD_EVERY * (HELD_AT_MOST + 2))
    ]
    for episode in episodes:
        learned += [int(rows[0, 0]) for rows in held.offer(episode)]
    kept = [int(each.rows[0, 0]) for each in held.episodes]
    assert len(kept) == HELD_AT_MOST
    assert all((number + 1) % HELD_EVERY == 0 for number in kept)
    assert sorted(learned + kept) == list(range(len(episodes)))
