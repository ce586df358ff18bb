import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.training.tiny import E, S, Z, tiny_config
from training.networks.blocks import StateFeatures, kl_divergence
from training.networks.critic import SkillCritic
from training.networks.meta_policy import MetaPolicy
from training.networks.skill_model import SkillPrior
from training.prior_regularised_sac import Coefficients, actor_terms, critic_loss, critic_target, polyak, step
from training.replay import Batch

CONFIG = tiny_config()
DISCOUNT, ALPHA = 0.9, 0.1


class FixedCritic(nn.Module):
    """Critics with known answers: the first Q is the sum of the state, the second that plus one."""

    def forward(self, state, skill, embedding):
        value = state.sum(-1) + 0 * skill.sum(-1) + 0 * embedding.sum(-1)
        return torch.stack([value + 1, value])


class FixedPolicy(nn.Module):
    """A policy whose KL to its prior is known: 0.5 * shift^2 for each of the Z entries."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, state, embedding):
        zero, one = torch.zeros(len(state), Z), torch.ones(len(state), Z)
        return zero + self.shift, one, zero, one


def make_batch(terminated, reward=2.0, discounted_return=0.0):
    count = len(terminated)
    return Batch(
        torch.zeros(count, S), torch.zeros(count, Z), torch.full((count,), reward), torch.tensor(terminated), torch.ones(count, S),
        torch.full((count,), discounted_return), torch.zeros(count),
    )  # fmt: skip


def target(batch, shift=1.0, kl_clip=5.0, return_bound=False, alpha=ALPHA):
    return critic_target(
        batch, torch.zeros(len(batch.reward), E), FixedPolicy(shift), FixedCritic(), torch.tensor([alpha]),
        discount=DISCOUNT, kl_clip=kl_clip, return_bound=return_bound,
    )  # fmt: skip


@pytest.fixture
def networks():
    torch.manual_seed(0)
    features = StateFeatures(S, CONFIG.features)
    policy = MetaPolicy(SkillPrior(features, CONFIG.skills), Z, CONFIG.networks)
    return policy, SkillCritic(features, Z, CONFIG.networks)


def test_termination_ends_the_return_and_truncation_does_not():
    # min Q = 4 in the next state; KL = 3 * 0.5; a truncated transition carries no flag
    assert target(make_batch([0.0, 1.0])).tolist() == pytest.approx([2 + 0.9 * (4 - 0.1 * 1.5), 2.0])


def test_the_kl_is_clipped_in_the_target():
    assert target(make_batch([0.0]), shift=10.0).tolist() == pytest.approx([2 + 0.9 * (4 - 0.1 * 5.0)])


def test_each_row_may_have_its_own_coefficient():
    batch = make_batch([0.0, 0.0])
    values = critic_target(
        batch,
        torch.zeros(2, E),
        FixedPolicy(1.0),
        FixedCritic(),
        torch.tensor([0.0, 2.0]),
        discount=DISCOUNT,
        kl_clip=5.0,
        return_bound=False,
    )
    assert values.tolist() == pytest.approx([2 + 0.9 * 4, 2 + 0.9 * (4 - 2 * 1.5)])


def test_the_observed_return_bounds_the_target_from_below_only():
    low, high = make_batch([0.0, 1.0], discounted_return=1.0), make_batch([0.0, 1.0], discounted_return=7.0)
    assert target(low, return_bound=True).tolist() == target(low).tolist()
    assert target(high, return_bound=True).tolist() == [7.0, 7.0]
    assert target(high).tolist() == target(low).tolist()


def test_the_target_carries_no_gradient(networks):
    policy, critic = networks
    batch, embedding = make_batch([0.0]), torch.zeros(1, E, requires_grad=True)
    value = critic_target(batch, embedding, policy, critic, torch.tensor([ALPHA]), discount=0.9, kl_clip=5.0, return_bound=True)
    assert not value.requires_grad


def test_the_critic_loss_is_the_mean_over_critics_and_batch():
    batch = make_batch([0.0, 0.0])
    assert critic_loss(batch, torch.zeros(2, E), FixedCritic(), torch.tensor([2.0, 4.0])).item() == pytest.approx((1 + 4 + 9 + 16) / 4)


def test_the_critic_loss_teaches_the_task_embedding(networks):
    embedding = torch.zeros(2, E, requires_grad=True)
    critic_loss(make_batch([0.0, 0.0]), embedding, networks[1], torch.zeros(2)).backward()
    assert (embedding.grad.abs() > 0).any()


def test_the_actor_leaves_the_critics_without_gradients_and_trainable(networks):
    policy, critic = networks
    batch = make_batch([0.0] * 6)
    improvement, kl, _ = actor_terms(batch, torch.zeros(6, E), policy, critic)
    assert improvement.shape == kl.shape == (6,)
    (improvement + ALPHA * kl).mean().backward()
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert all(parameter.requires_grad for parameter in critic.parameters())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in policy.net.parameters())


def test_an_actor_step_keeps_gradients_that_the_critics_had(networks):
    policy, critic = networks
    batch = make_batch([0.0] * 6)
    critic_loss(batch, torch.zeros(6, E), critic, torch.ones(6)).backward()
    before = [parameter.grad.clone() for parameter in critic.parameters()]
    actor_terms(batch, torch.zeros(6, E), policy, critic)[0].mean().backward()
    assert all(torch.equal(parameter.grad, kept) for parameter, kept in zip(critic.parameters(), before, strict=True))


def test_the_actors_terms_are_the_smaller_value_and_the_kl():
    improvement, kl, _ = actor_terms(make_batch([0.0]), torch.zeros(1, E), FixedPolicy(2.0), FixedCritic())
    assert (improvement.item(), kl.item()) == (0.0, 6.0)


def test_the_actor_imitates_the_skills_of_the_best_episodes_alone():
    batch = replace(make_batch([0.0, 0.0]), skill=torch.full((2, Z), 5.0), best=torch.tensor([1.0, 0.0]))
    _, _, imitation = actor_terms(batch, torch.zeros(2, E), FixedPolicy(2.0), FixedCritic())
    nats = Z * (0.5 * (5.0 - 2.0) ** 2 + 0.5 * math.log(2 * math.pi))
    assert imitation.tolist() == pytest.approx([nats, 0.0])


def test_the_actor_climbs_the_critic_and_a_large_coefficient_holds_it_at_the_prior():
    reached = {}
    for alpha in (0.01, 100.0):
        torch.manual_seed(0)
        policy = MetaPolicy(SkillPrior(StateFeatures(S, CONFIG.features), CONFIG.skills), Z, CONFIG.networks)
        optimizer = torch.optim.Adam(policy.net.parameters(), 1e-2)

        class Slope(nn.Module):
            def forward(self, state, skill, embedding):
                return skill.sum(-1).expand(2, -1)

        batch = make_batch([0.0] * 16)
        for _ in range(100):
            improvement, kl, _ = actor_terms(batch, torch.zeros(16, E), policy, Slope())
            step(optimizer, (improvement + alpha * kl).mean())
        reached[alpha] = (improvement.mean().item(), kl.mean().item())
    assert reached[0.01][0] < reached[100.0][0] - 3
    assert reached[100.0][1] < 0.05 < reached[0.01][1]


@pytest.mark.parametrize("initial", [3e-6, 1e-3, 0.5, 20.0])
def test_coefficients_begin_where_they_are_told(initial):
    values = Coefficients(initial, 1.0, count=4)()
    assert values.shape == (4,)
    assert not values.requires_grad
    assert values.tolist() == pytest.approx([initial] * 4, rel=1e-4)


def test_coefficients_only_rise_and_only_while_their_kl_is_above_its_target():
    coefficients = Coefficients(1e-3, target=2.0, count=3)
    optimizer = torch.optim.Adam([coefficients.raw], 0.01)
    seen = [coefficients()]
    for kl in [[1.0, 2.5, 9.0]] * 20 + [[0.0, 0.0, 9.0]] * 20:
        step(optimizer, coefficients.loss(torch.tensor(kl)))
        seen.append(coefficients())
    path = torch.stack(seen)
    assert (path.diff(dim=0) >= 0).all()
    assert path[-1, 0] == path[0, 0]
    assert path[20, 1] > path[0, 1]
    assert path[-1, 2] > path[20, 2] > path[0, 2]


def test_a_coefficient_that_may_fall_does_while_its_kl_is_below_the_target():
    coefficients = Coefficients(1e-3, target=2.0, count=2, may_fall=True)
    optimizer = torch.optim.Adam([coefficients.raw], 0.01)
    for _ in range(20):
        step(optimizer, coefficients.loss(torch.tensor([1.0, 9.0])))
    fallen, risen = coefficients()
    assert fallen < 0.9e-3
    assert risen > 1.1e-3


def test_only_the_named_coefficients_rise():
    coefficients = Coefficients(1e-3, target=1.0, count=4)
    step(torch.optim.Adam([coefficients.raw], 0.01), coefficients.loss(torch.tensor([5.0, 5.0]), torch.tensor([3, 1])))
    assert (coefficients() > 1.0001e-3).tolist() == [False, True, False, True]


def test_a_coefficients_loss_does_not_reach_the_networks_behind_the_kl(networks):
    mean, std, prior_mean, prior_std = networks[0](torch.randn(3, S), torch.randn(3, E))
    kl = kl_divergence(mean + 10, std, prior_mean, prior_std).mean()
    Coefficients(1e-3, target=1.0).loss(kl).backward()
    assert all(parameter.grad is None for parameter in networks[0].parameters())


def test_polyak_moves_the_target_by_its_rate():
    online, slow = nn.Linear(2, 2), nn.Linear(2, 2)
    before, toward = slow.weight.detach().clone(), online.weight.detach().clone()
    polyak(online, slow, 0.25)
    torch.testing.assert_close(slow.weight.detach(), 0.75 * before + 0.25 * toward)
    assert torch.equal(online.weight, toward)
