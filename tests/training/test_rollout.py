import numpy as np
import pytest
import torch
from torch import nn

from tests.training.tiny import LAYOUT, H, Z
from tests.training.worlds import CountingWorld
from training.networks.meta_policy import MetaPolicy
from training.rollout import Acting, Choice, rollout


class FixedPolicy(MetaPolicy):
    """Skills that are known: mean 10 x embedding + state (first entry), no spread; the prior's mean is -1."""

    def __init__(self, offset=0.0):
        nn.Module.__init__(self)
        self.offset = offset

    def forward(self, state, task_embedding):
        mean = (10 * task_embedding[:, :1] + state[:, :1] + self.offset).expand(-1, Z)
        zero = torch.zeros_like(mean)
        return mean, zero, zero - 1, zero


class Decoder(nn.Module):
    """Acts with the skill's first entry."""

    def forward(self, state, skill):
        return skill[:, :1].expand(-1, 2)


def run(world, tasks, acting=None, policies=None, seed=0, **options):
    acting = acting or Acting.by_policy(torch.arange(len(tasks) * 2.0).view(-1, 2))
    policies = policies or FixedPolicy()
    return rollout(world, tasks, policies, Decoder(), acting, horizon=H, layout=LAYOUT, rng=np.random.default_rng(seed), **options)


def test_a_skill_sums_its_rewards_and_is_kept_for_the_horizon():
    world = CountingWorld(episode_steps=10)
    (episode,), _ = run(world, [100])
    # one point for every step, and each state is the number of steps so far
    np.testing.assert_array_equal(episode.rows[:, LAYOUT.reward], [5, 5])
    np.testing.assert_array_equal(episode.rows[:, 0], [0, 5])
    np.testing.assert_array_equal(episode.rows[:, LAYOUT.next_state.start], [5, 10])
    np.testing.assert_array_equal(episode.rows[:, LAYOUT.skill], [[0] * 3, [5] * 3])
    assert [action for _, action in world.seen] == [0] * 5 + [5] * 5
    assert (episode.steps, episode.episode_return, episode.success) == (10, 10.0, False)
    assert not episode.rows[:, LAYOUT.terminated].any()


def test_an_episode_ends_inside_a_skill_while_others_go_on():
    world = CountingWorld(episode_steps=10)
    (first, second), _ = run(world, [7, 100])
    assert (first.steps, first.episode_return, first.success) == (7, 7 + 50, True)
    np.testing.assert_array_equal(first.rows[:, LAYOUT.reward], [5, 2 + 50])
    np.testing.assert_array_equal(first.rows[:, LAYOUT.terminated], [0, 1])
    assert first.rows[-1, LAYOUT.next_state.start] == 7
    assert (second.steps, len(second.rows)) == (10, 2)
    assert sum(episode == 0 for episode, _ in world.seen) == 7


@pytest.mark.parametrize("goal", [1, 5, 6, 10])
def test_an_end_on_either_edge_of_a_skill_belongs_to_the_skill_of_that_step(goal):
    (episode,), _ = run(CountingWorld(episode_steps=10), [goal])
    assert len(episode.rows) == -(-goal // H)
    assert episode.rows[:, LAYOUT.terminated].tolist() == [0.0] * (len(episode.rows) - 1) + [1.0]
    assert episode.steps == goal


def test_a_limit_that_is_no_multiple_of_the_horizon_truncates_the_last_skill():
    (episode,), (path,) = run(CountingWorld(episode_steps=13), [100], paths=True)
    np.testing.assert_array_equal(episode.rows[:, LAYOUT.reward], [5, 5, 3])
    assert episode.rows[-1, LAYOUT.terminated] == 0
    assert episode.rows[-1, LAYOUT.next_state.start] == 13
    np.testing.assert_array_equal(path[:, 0], np.arange(14))


def test_episodes_act_with_their_own_embedding_and_policy():
    acting = Acting.by_policy(torch.tensor([[1.0, 0], [2.0, 0], [3.0, 0]]))
    episodes, _ = run(CountingWorld(episode_steps=10), [100, 3, 100], acting, [FixedPolicy(), FixedPolicy(100), FixedPolicy(200)])
    assert [episode.rows[0, LAYOUT.skill.start] for episode in episodes] == [10, 120, 230]
    assert [episode.rows[-1, LAYOUT.skill.start] for episode in episodes] == [15, 120, 235]


def test_episodes_may_follow_the_plain_skill_prior():
    acting = Acting(torch.ones(2, 2), torch.tensor([True, False]))
    episodes, _ = run(CountingWorld(episode_steps=5), [100, 100], acting)
    assert [episode.rows[0, LAYOUT.skill.start] for episode in episodes] == [-1, 10]
    (prior,), _ = run(CountingWorld(episode_steps=5), [100], Acting.by_prior(1, 2))
    assert prior.rows[0, LAYOUT.skill.start] == -1


def test_embeddings_may_be_chosen_anew_at_every_skill():
    asked = []

    def redraw(skill_index, states, active, earned):
        asked.append((skill_index, states[:, 0].tolist(), active.tolist(), earned.tolist()))
        return Choice(torch.full((2, 2), float(skill_index + 1)))

    episodes, _ = run(CountingWorld(episode_steps=13), [4, 100], Acting(torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool), redraw=redraw))
    assert asked == [(0, [0, 0], [0, 1], [0, 0]), (1, [4, 5], [1], [54, 5]), (2, [4, 10], [1], [54, 10])]
    assert episodes[1].rows[:, LAYOUT.skill.start].tolist() == [10, 25, 40]


def test_single_skills_may_be_chosen_by_a_base_policy():
    def redraw(skill_index, states, active, earned):
        return Choice(torch.zeros(2, 2), np.array([skill_index == 1, False]))

    acting = Acting(torch.zeros(0), torch.zeros(2, dtype=torch.bool), redraw=redraw, base=FixedPolicy(1000.0))
    episodes, _ = run(CountingWorld(episode_steps=13), [100, 100], acting, [FixedPolicy(), FixedPolicy(100.0)])
    assert [episode.rows[:, LAYOUT.skill.start].tolist() for episode in episodes] == [[0, 1005, 10], [100, 105, 110]]


class NoisyPolicy(FixedPolicy):
    def forward(self, state, task_embedding):
        mean, zero, prior_mean, _ = super().forward(state, task_embedding)
        return mean, zero + 2, prior_mean, zero + 1


def test_skills_are_sampled_unless_acting_is_deterministic():
    tasks, embeddings = [100] * 2000, torch.zeros(2000, 2)
    sampled = np.stack([e.rows[0, LAYOUT.skill] for e in run(CountingWorld(5), tasks, Acting.by_policy(embeddings), NoisyPolicy())[0]])
    assert abs(sampled.mean()) < 0.1
    assert sampled.std() == pytest.approx(2, rel=0.05)
    fixed, _ = run(CountingWorld(5), [100], Acting.by_policy(embeddings[:1], deterministic=True), NoisyPolicy())
    assert fixed[0].rows[0, LAYOUT.skill].tolist() == [0.0] * 3


def test_a_temperature_scales_what_the_policy_draws_and_not_the_skill_prior():
    tasks, plain = [100] * 2000, torch.arange(2000) % 2 == 0
    acting = Acting(torch.zeros(2000, 2), plain, temperature=0.25)
    sampled = np.stack([e.rows[0, LAYOUT.skill] for e in run(CountingWorld(5), tasks, acting, NoisyPolicy())[0]])
    assert sampled[1::2].std() == pytest.approx(0.5, rel=0.05)
    assert sampled[::2].std() == pytest.approx(1, rel=0.05)


def test_the_same_seed_gives_the_same_episodes():
    once, again, other = (run(CountingWorld(10), [100], policies=NoisyPolicy(), seed=seed)[0][0].rows for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
