import numpy as np
import pytest

from training.contract.belief import FOLLOW_SKILLS, LEAST, UNREACHED, Belief, effective_number, entropy

PARTICLES = np.array([[0.0, 1.0], [5.0, 1.0], [9.0, 1.0]], np.float32)  # each expects its reward where the state's first entry is its own
NEAR = 0.5
KEY = {"seed": 7, "episode": 2}


def probability(states, embeddings):
    return np.where(np.abs(states[:, 0] - embeddings[:, 0]) < NEAR, np.float32(0.9), np.float32(0.01))


@pytest.fixture
def belief():
    return Belief(PARTICLES, probability)


def at(place):
    return np.array([place, -3.0, 2.0], np.float32)


def walk(belief, following, places, **options):
    """Following a belief through states, skill by skill. Returns what was followed at each."""
    seen = []
    for index, place in enumerate(places):
        following = belief.follow(following, at(place), **{**KEY, "skill_index": index, "rewarded": False} | options)
        seen.append(following)
    return seen


def test_at_first_every_particle_is_as_plausible(belief):
    assert belief.begin().plausibility.tolist() == [1, 1, 1]
    chosen = {belief.follow(belief.begin(), at(3), seed=seed, episode=0, skill_index=0, rewarded=False).particle for seed in range(60)}
    assert chosen == {0, 1, 2}


def test_a_state_seen_in_vain_speaks_against_the_particles_that_expected_a_reward_there(belief):
    once = belief.seen_in_vain(belief.begin().plausibility, at(5))
    np.testing.assert_allclose(once, [0.99, 0.1, 0.99], rtol=1e-5)
    assert once.dtype == np.float32


def test_the_same_state_seen_again_says_nothing_new(belief):
    once = belief.seen_in_vain(belief.begin().plausibility, at(5))
    np.testing.assert_array_equal(belief.seen_in_vain(once, at(5)), once)


def test_a_particle_is_followed_until_it_is_ruled_out(belief):
    first, *rest = walk(belief, belief.begin(), [3] * 4)
    goal = float(PARTICLES[first.particle, 0])
    assert {following.particle for following in rest} == {first.particle}
    ruled_out = belief.follow(rest[-1], at(goal), **KEY, skill_index=4, rewarded=False)
    assert ruled_out.plausibility[first.particle] == pytest.approx(0.1, rel=1e-5)
    assert ruled_out.since == 4


def test_particles_that_are_ruled_out_are_hardly_chosen_again(belief):
    following = belief.begin()
    for place in (0, 5):
        following = belief.follow(following, at(place), **KEY, skill_index=0, rewarded=False)
    chosen = [belief.follow(following, at(3), seed=seed, episode=0, skill_index=0, rewarded=False).particle for seed in range(200)]
    assert np.mean(np.array(chosen) == 2) > 0.7


def test_a_particle_whose_time_is_up_counts_for_less_and_another_choice_is_made(belief):
    seen = walk(belief, belief.begin(), [3] * (FOLLOW_SKILLS + 1))
    followed = seen[0].particle
    assert [following.since for following in seen] == [0] * FOLLOW_SKILLS + [FOLLOW_SKILLS]
    assert seen[-1].plausibility[followed] == pytest.approx(0.99 * UNREACHED)
    assert seen[-2].plausibility[followed] == pytest.approx(0.99)


def test_every_episode_begins_with_a_choice(belief):
    following = walk(belief, belief.begin(), [3] * 5)[-1]
    begun = {belief.follow(following, at(3), seed=7, episode=episode, skill_index=0, rewarded=False).particle for episode in range(3, 40)}
    assert begun == {0, 1, 2}


def test_a_rewarded_session_rules_nothing_out_and_stays_with_its_particle(belief):
    first = walk(belief, belief.begin(), [3])[0]
    goal = float(PARTICLES[first.particle, 0])
    for index in range(1, 2 * FOLLOW_SKILLS):
        assert belief.follow(first, at(goal), **KEY, skill_index=index, rewarded=True) is first


def test_the_same_arguments_give_the_same_and_another_seed_or_episode_others(belief):
    def choices(seed, episode):
        return [belief.follow(belief.begin(), at(3), seed=seed, episode=episode, skill_index=0, rewarded=False).particle]

    runs = [[choices(seed, episode) for episode in range(20)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert len({tuple(each) for each in runs[0]}) > 1


def test_no_particle_is_ever_impossible(belief):
    certain = Belief(PARTICLES, lambda states, embeddings: np.ones(len(states), np.float32))
    np.testing.assert_array_equal(certain.seen_in_vain(certain.begin().plausibility, at(0)), np.full(3, LEAST, np.float32))
    assert certain.follow(certain.begin(), at(0), **KEY, skill_index=0, rewarded=False).particle in range(3)


def test_candidates_are_the_mean_and_draws_that_explain_the_rewards(belief):
    mean, scale = np.array([7.0, 1.0], np.float32), np.array([2.0, 0.1], np.float32)
    drawn = np.concatenate([belief.candidates(mean, scale, at(5)[None], seed=seed, episode=3, count=5)[1:] for seed in range(50)])
    assert np.mean(np.abs(drawn[:, 0] - 5) < NEAR) > 0.85  # 15 % of the draws alone
    np.testing.assert_array_equal(belief.candidates(mean, scale, at(5)[None], seed=1, episode=3, count=5)[0], mean)
    assert belief.candidates(mean, scale, at(5)[None], seed=1, episode=3, count=5).shape == (5, 2)


def test_candidates_without_a_reward_are_draws_from_the_posterior(belief):
    mean, scale, unseen = np.array([7.0, 1.0], np.float32), np.array([2.0, 0.1], np.float32), np.zeros((0, 3), np.float32)
    drawn = np.concatenate([belief.candidates(mean, scale, unseen, seed=seed, episode=3, count=40)[1:] for seed in range(50)])
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.2)
    np.testing.assert_allclose(drawn.std(0), scale, rtol=0.15)


def test_a_reward_raises_the_particles_that_explain_it(belief):
    weights = belief.weights(belief.seen_in_vain(belief.begin().plausibility, at(9)), np.stack([at(5), at(5.2)]))
    assert weights.argmax() == 1
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights, np.array([0.0099, 0.891, 0.001]) / 0.9019, rtol=1e-4)


def test_effective_number_and_entropy_of_even_and_of_certain_weights():
    even, certain = np.full(8, 0.125, np.float32), np.eye(8, dtype=np.float32)[3]
    assert (effective_number(even), effective_number(certain)) == (pytest.approx(8), pytest.approx(1))
    assert (entropy(even), entropy(certain)) == (pytest.approx(np.log(8)), pytest.approx(0))
