import numpy as np
import pytest

from training.contract.exploration import (
    RECENT_EPISODES,
    SWITCH_SKILLS,
    Exploration,
    Phase,
    automatic_phase,
    detour_after,
    drawn_embedding,
    exploratory_embedding,
    plan_episode,
    skill_noise,
)

K = 3


def plan(phase, episode, seed=7, rewarded=False, **options):
    return plan_episode(phase, seed=seed, episode=episode, conditioning_episodes=K, task_embedding_dim=2, rewarded=rewarded, **options)


@pytest.mark.parametrize(
    ("episode", "rewarded", "finetuned", "phase"),
    [
        (0, False, False, Phase.EXPLORING),
        (2, True, False, Phase.EXPLORING),  # all conditioning episodes are run, rewarded or not
        (3, True, False, Phase.ADAPTED),
        (3, True, True, Phase.FINETUNING),
        (3, False, False, Phase.EXPLORING),  # nothing to infer a task from
        (50, False, True, Phase.EXPLORING),
    ],
)
def test_a_session_explores_until_it_has_conditioned_and_been_rewarded(episode, rewarded, finetuned, phase):
    assert automatic_phase(episode, K, rewarded=rewarded, finetuned=finetuned) is phase


def test_without_conditioning_episodes_a_session_never_explores():
    assert automatic_phase(0, 0, rewarded=False, finetuned=False) is Phase.ADAPTED


def test_every_conditioning_episode_draws_its_own_embedding():
    embeddings = [plan(Phase.EXPLORING, episode).task_embedding for episode in range(K)]
    assert len({embedding.tobytes() for embedding in embeddings}) == K
    assert all(embedding.shape == (2,) and embedding.dtype == np.float32 for embedding in embeddings)
    assert not any(plan(Phase.EXPLORING, episode).use_skill_prior for episode in range(K))


def test_the_embeddings_are_standard_normal():
    many = np.stack([plan(Phase.EXPLORING, 0, seed).task_embedding for seed in range(4000)])
    np.testing.assert_allclose(many.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(many.T), np.eye(2), atol=0.1)


def test_a_replayed_session_draws_the_same_and_another_seed_others():
    np.testing.assert_array_equal(plan(Phase.EXPLORING, 1).task_embedding, plan(Phase.EXPLORING, 1).task_embedding)
    assert not np.array_equal(plan(Phase.EXPLORING, 1).task_embedding, plan(Phase.EXPLORING, 1, seed=8).task_embedding)


def test_exploration_in_overtime_uses_the_skill_prior_every_second_episode():
    plans = [plan(Phase.EXPLORING, episode) for episode in range(K, K + 4)]
    assert [p.use_skill_prior for p in plans] == [False, True, False, True]
    assert [p.task_embedding is None for p in plans] == [False, True, False, True]


@pytest.mark.parametrize("phase", [Phase.ADAPTED, Phase.FINETUNING])
def test_after_exploring_the_posteriors_mean_is_used(phase):
    for episode in (0, K, K + 1):
        assert plan(phase, episode).task_embedding is None
        assert not plan(phase, episode).use_skill_prior


def test_skill_noise_depends_on_seed_episode_and_step_alone():
    noises = {skill_noise(*key, 3).tobytes() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 10), (10, 0, 0)]}
    assert len(noises) == 5
    np.testing.assert_array_equal(skill_noise(5, 6, 7, 3), skill_noise(5, 6, 7, 3))
    many = np.concatenate([skill_noise(0, 0, step, 3) for step in range(2000)])
    assert (abs(many.mean()) < 0.05, many.std()) == (True, pytest.approx(1, abs=0.05))
    assert many.dtype == np.float32


def test_switching_exploration_draws_anew_every_forty_skills():
    drawn = [drawn_embedding(Exploration.SWITCHING, 7, 1, skill, 2).tobytes() for skill in range(3 * SWITCH_SKILLS)]
    assert SWITCH_SKILLS == 40
    assert [len(set(drawn[first : first + 40])) for first in (0, 40, 80)] == [1, 1, 1]
    assert len(set(drawn)) == 3


def test_prior_exploration_keeps_its_embedding_for_the_episode():
    drawn = {drawn_embedding(Exploration.PRIOR, 7, 1, skill, 2).tobytes() for skill in range(200)}
    assert len(drawn) == 1
    assert drawn != {drawn_embedding(Exploration.PRIOR, 7, 2, 0, 2).tobytes()}


@pytest.mark.parametrize("exploration", Exploration)
def test_a_plan_begins_with_the_first_drawn_embedding(exploration):
    made = plan(Phase.EXPLORING, 2, exploration=exploration)
    np.testing.assert_array_equal(made.task_embedding, drawn_embedding(exploration, 7, 2, 0, 2))


def test_thompson_exploration_is_switching_until_there_is_a_reward():
    assert not any(Exploration.THOMPSON.asks_posterior(Phase.EXPLORING, episode=episode, rewarded=False) for episode in range(K))
    drawn = [drawn_embedding(Exploration.THOMPSON, 7, 1, skill, 2).tobytes() for skill in range(3 * SWITCH_SKILLS)]
    assert drawn == [drawn_embedding(Exploration.SWITCHING, 7, 1, skill, 2).tobytes() for skill in range(3 * SWITCH_SKILLS)]


@pytest.mark.parametrize(("exploration", "asks"), [(Exploration.THOMPSON, [True, True]), (Exploration.ALTERNATING, [False, True])])
def test_thompson_exploration_then_asks_the_posterior_and_alternating_in_every_second_episode(exploration, asks):
    asked = [exploration.asks_posterior(Phase.EXPLORING, episode=episode, rewarded=True) for episode in range(6)]
    assert asked == asks * 3
    for episode in range(6):
        assert not exploration.asks_posterior(Phase.FINETUNING, episode=episode, rewarded=True)
        assert not Exploration.SWITCHING.asks_posterior(Phase.EXPLORING, episode=episode, rewarded=True)
        assert Exploration.BELIEF.asks_posterior(Phase.EXPLORING, episode=episode, rewarded=True)


def test_thompson_exploration_draws_from_the_posterior_anew_for_each_episode():
    mean, scale = np.array([3.0, -5.0], np.float32), np.array([0.1, 2.0], np.float32)

    def made(episode, seed=7):
        return plan(Phase.EXPLORING, episode, seed, rewarded=True, exploration=Exploration.THOMPSON, posterior=(mean, scale))

    drawn = np.stack([made(episode).task_embedding for episode in range(2000)])
    assert made(3).inferred
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.15)
    np.testing.assert_allclose(drawn.std(0), scale, rtol=0.1)
    np.testing.assert_array_equal(made(3).task_embedding, drawn[3])
    assert not np.array_equal(made(3, seed=8).task_embedding, drawn[3])


class Particles:
    """What a belief offers here: particles that say which episode and turn drew them."""

    def at_random(self, *, seed, episode, turn):
        return np.array([episode, turn], np.float32)


@pytest.mark.parametrize("conditioning_episodes", [4, 5])
@pytest.mark.parametrize(("exploration", "first"), [(Exploration.THOMPSON, "particle"), (Exploration.ALTERNATING, "N(0, I)")])
def test_without_reward_particles_are_drawn_alternating_with_the_prior_then_with_the_skill_prior(exploration, first, conditioning_episodes):
    def kind(episode, *, rewarded=False):
        how = {"seed": 7, "episode": episode, "conditioning_episodes": conditioning_episodes, "task_embedding_dim": 2, "rewarded": rewarded}
        made = plan_episode(Phase.EXPLORING, exploration=exploration, **how)
        assert not made.inferred
        if made.use_skill_prior:
            return "skill prior"
        drawn, _ = exploratory_embedding(exploration, Particles(), None, np.zeros(4), skill_index=2 * SWITCH_SKILLS, **how)
        if drawn.tolist() == [episode, 2]:
            return "particle"
        np.testing.assert_array_equal(drawn, drawn_embedding(exploration, 7, episode, 2 * SWITCH_SKILLS, 2))
        return "N(0, I)"

    found = [kind(episode) for episode in range(conditioning_episodes + 4)]
    assert found == ([first, "particle"] * 3)[:conditioning_episodes] + ["particle", "skill prior"] * 2
    if exploration is Exploration.ALTERNATING:
        # A client may make a session go on exploring when there were rewards: then every second episode has the posterior, the others this.
        assert {kind(episode, rewarded=True) for episode in range(0, conditioning_episodes + 4, 2)} == {"N(0, I)"}


def detours(episodes, *, exploration=Exploration.THOMPSON, returns=(3.0,), completed=(False,), seed=7):
    return [
        detour_after(exploration, seed=seed, episode=episode, conditioning_episodes=K, returns=returns, completed=completed)
        for episode in episodes
    ]


def test_half_of_the_episodes_after_conditioning_take_a_detour_and_fewer_later():
    def share(first, last):
        return np.mean([after is not None for seed in range(40) for after in detours(range(K + first, K + last), seed=seed)])

    assert detours(range(K)) == [None] * K
    assert share(0, 40) == pytest.approx(1 / 2, abs=0.05)
    assert share(380, 420) == pytest.approx(20 / 400, abs=0.02)


def test_a_detour_begins_after_a_reward_and_before_the_most_that_was_earned():
    drawn = [after for after in detours(range(K, 2000), returns=[9.0, *[3.0] * RECENT_EPISODES]) if after is not None]
    assert len(drawn) > 20
    assert 0 < min(drawn) < 0.5
    assert 1.5 < max(drawn) <= 2.0


@pytest.mark.parametrize(
    "known",
    [
        {"returns": []},
        {"returns": [0.0]},
        {"completed": [True, *[False] * (RECENT_EPISODES - 1)]},
        {"exploration": Exploration.NOVELTY},
        {"exploration": Exploration.PRIOR},
    ],
)
def test_no_detour_without_a_reward_or_where_a_task_was_completed_lately_or_by_another_exploration(known):
    assert detours(range(100), **known) == [None] * 100


def test_a_task_completed_long_ago_does_not_stop_detours():
    assert any(after is not None for after in detours(range(K, 30), completed=[True, *[False] * RECENT_EPISODES]))
