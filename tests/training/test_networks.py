import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.training.tiny import LAYOUT, A, E, H, S, Z, tiny_config
from training.config import FeatureConfig, NetworkConfig
from training.networks import blocks
from training.networks.blocks import STD_FLOOR, StackedMLP, StateFeatures
from training.networks.critic import SkillCritic
from training.networks.meta_policy import MetaPolicy
from training.networks.skill_model import SkillModel
from training.networks.task_encoder import TaskEncoder

CONFIG = tiny_config()
KINDS = ["set_transformer", "product_of_gaussians"]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def skills():
    torch.manual_seed(0)
    low, high = torch.tensor([-1.0, -0.5]), torch.tensor([3.0, 0.5])
    mean, std = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 4, 8])
    return SkillModel(CONFIG.features, CONFIG.skills, state_mean=mean, state_std=std, action_low=low, action_high=high)


def make_encoder(kind, **sizes):
    torch.manual_seed(1)
    config = NetworkConfig.model_validate(CONFIG.networks.model_dump() | {"encoder": kind} | sizes)
    return TaskEncoder(StateFeatures(S, CONFIG.features), LAYOUT, config)


def test_features_are_standardised_entries_then_sines_and_cosines_of_chosen_raw_ones():
    features = StateFeatures(
        S, FeatureConfig(periodic_entries=(2, 0), periods=(8.0, 4.0)), torch.tensor([1.0, 0, 0, 0]), torch.tensor([2.0, 1, 1, 1])
    )
    seen = features(torch.tensor([[5.0, 3, 1, -2]]))
    assert seen.shape == (1, features.dim) == (1, 12)
    half = 2**-0.5
    expected = [2, 3, 1, -2, half, 1, -half, 1, half, 0, -half, 0]
    torch.testing.assert_close(seen, torch.tensor([expected]), atol=1e-5, rtol=0)


def test_an_entry_far_from_the_data_drowns_nothing():
    features = StateFeatures(S, FeatureConfig(), torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.5, 1, 1e-3, 1]))
    near, far = features(torch.tensor([[1.0, 2, 0.0051, 3], [1.0, 2, 90.0, 3]]))
    assert near.tolist() == far.tolist() == [0, 2, 5, 3]
    assert features(torch.tensor([[1.0, 2, -90.0, 3]])).tolist() == [[0, 2, -5, 3]]


def test_features_repeat_with_the_period():
    features = StateFeatures(S, FeatureConfig(periodic_entries=(1,), periods=(4.0, 2.0, 1.0)))
    state = rand(7, S)
    shifted = state + torch.tensor([0.0, 4.0, 0, 0])
    torch.testing.assert_close(features(state)[:, S:], features(shifted)[:, S:], atol=1e-5, rtol=0)


def test_actions_stay_inside_uneven_limits_and_reach_them(skills):
    actions = skills.decoder(1000 * rand(500, S), 1000 * rand(500, Z, seed=1))
    assert actions.shape == (500, A)
    for index, (low, high) in enumerate([(-1.0, 3.0), (-0.5, 0.5)]):
        assert actions[:, index].min().item() == pytest.approx(low, abs=1e-5)
        assert actions[:, index].max().item() == pytest.approx(high, abs=1e-5)


def test_the_skill_encoder_sees_every_step_of_its_window(skills):
    states, actions = rand(1, H, S), rand(1, H, A, seed=1)
    mean, std = skills.encoder(states, actions)
    assert mean.shape == std.shape == (1, Z)
    for step in range(H):
        for part in (states, actions):
            part[0, step] += 1
            assert not torch.equal(skills.encoder(states, actions)[0], mean)
            part[0, step] -= 1


def test_the_untrained_policy_is_the_skill_prior(skills):
    policy = MetaPolicy(skills.prior, Z, CONFIG.networks)
    mean, std, prior_mean, prior_std = policy(rand(50, S), rand(50, E, seed=1))
    expected = skills.prior(rand(50, S))
    torch.testing.assert_close((prior_mean, prior_std), tuple(part.detach() for part in expected))
    assert blocks.kl_divergence(mean, std, prior_mean, prior_std).max() < 0.01


def test_a_policy_with_no_residual_differs_from_the_prior_by_the_floor_alone(skills):
    policy = MetaPolicy(skills.prior, Z, CONFIG.networks)
    for parameter in policy.net[-1].parameters():
        torch.nn.init.zeros_(parameter)
    mean, std, prior_mean, prior_std = policy(rand(50, S), rand(50, E, seed=1))
    torch.testing.assert_close(mean, prior_mean)
    torch.testing.assert_close(std, prior_std + STD_FLOOR)


def test_only_the_residual_of_a_policy_is_trained(skills):
    policy = MetaPolicy(skills.prior, Z, CONFIG.networks)
    mean, std, _, _ = policy(rand(5, S), rand(5, E))
    (mean.sum() + std.sum()).backward()
    assert all(parameter.grad is None for parameter in skills.prior.parameters())
    trained = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert trained == set(policy.residual_parameters()) == {f"net.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_context_does_not_matter(kind):
    encoder, context = make_encoder(kind), rand(3, 7, LAYOUT.width)
    mean, std = encoder(context, torch.ones(3, 7))
    assert mean.shape == std.shape == (3, E)
    for seed in range(3):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(encoder(context[:, order], torch.ones(3, 7)), (mean, std), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_a_context_matters(kind):
    encoder, context = make_encoder(kind), rand(1, 7, LAYOUT.width)
    mean, _ = encoder(context, torch.ones(1, 7))
    for row in range(7):
        for column in (0, S, LAYOUT.reward, LAYOUT.terminated, LAYOUT.width - 1):
            changed = context.clone()
            changed[0, row, column] += 1
            assert not torch.equal(encoder(changed, torch.ones(1, 7))[0], mean)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_by_the_mask_changes_nothing(kind):
    encoder, context = make_encoder(kind), rand(3, 7, LAYOUT.width)
    plain = encoder(context, torch.ones(3, 7))
    padded = torch.cat([context[:, :4], 100 * rand(3, 5, LAYOUT.width, seed=1), context[:, 4:]], 1)
    mask = torch.tensor([1.0] * 4 + [0.0] * 5 + [1.0] * 3).expand(3, -1)
    torch.testing.assert_close(encoder(padded, mask), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_of_different_lengths_share_a_batch(kind):
    encoder, context = make_encoder(kind), rand(3, 7, LAYOUT.width)
    lengths = torch.tensor([0, 2, 7])
    mean, std = encoder(context, (torch.arange(7) < lengths[:, None]).float())
    for index, length in enumerate(lengths.tolist()):
        alone = encoder(context[index : index + 1, :length], torch.ones(1, length))
        torch.testing.assert_close((mean[index : index + 1], std[index : index + 1]), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [0, 6])
def test_an_empty_context_gives_exactly_the_task_prior(kind, padding):
    mean, std = make_encoder(kind)(rand(3, padding, LAYOUT.width), torch.zeros(3, padding))
    assert torch.equal(mean, torch.zeros(3, E))
    assert torch.equal(std, torch.ones(3, E))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_contexts_leave_finite_gradients(kind):
    encoder = make_encoder(kind)
    mean, std = encoder(rand(2, 3, LAYOUT.width), torch.tensor([[0.0, 0, 0], [1, 1, 0]]))
    (mean.sum() + std.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters() if parameter.grad is not None)


def test_a_product_of_gaussians_adds_precisions():
    encoder, row = make_encoder("product_of_gaussians"), rand(1, 1, LAYOUT.width)
    mean, std = encoder(row, torch.ones(1, 1))
    repeated_mean, repeated_std = encoder(row.expand(1, 4, -1), torch.ones(1, 4))
    torch.testing.assert_close(repeated_mean, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(repeated_std, std / 2)


def test_a_set_transformer_without_induced_blocks_is_a_pooled_attention():
    assert make_encoder("set_transformer", encoder_blocks=0)(rand(2, 5, LAYOUT.width), torch.ones(2, 5))[0].shape == (2, E)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_stacked_critics_equal_single_ones(layer_norm):
    torch.manual_seed(0)
    stacked = StackedMLP(3, 6, (5, 4), 2, layer_norm=layer_norm)
    x = rand(7, 6)
    together = stacked(x)
    assert together.shape == (3, 7, 2)
    for member in range(3):
        h = x
        for layer in stacked.layers:
            h = h @ layer.weight[member] + layer.bias[member]
            if layer_norm:
                h = (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + 1e-5)
            h = torch.relu(h)
        alone = h @ stacked.last.weight[member] + stacked.last.bias[member]
        torch.testing.assert_close(together[member], alone, atol=1e-5, rtol=1e-5)


def test_the_critics_differ_and_answer_one_value_a_row(skills):
    critic = SkillCritic(skills.features, Z, CONFIG.networks)
    assert critic.net.layer_norm
    values = critic(rand(7, S), rand(7, Z), rand(7, E))
    assert values.shape == (2, 7)
    assert not torch.allclose(values[0], values[1])


def gaussians(seed):
    return rand(20, Z, seed=seed), rand(20, Z, seed=seed + 1).exp()


def test_kl_agrees_with_torch_distributions():
    p, q = gaussians(0), gaussians(2)
    torch.testing.assert_close(blocks.kl_divergence(*p, *q), kl_divergence(Normal(*p), Normal(*q)).sum(-1))
    torch.testing.assert_close(blocks.kl_to_standard(*p), kl_divergence(Normal(*p), Normal(0.0, 1.0)).sum(-1))
    assert torch.equal(blocks.kl_divergence(*p, *p), torch.zeros(20))


def test_the_kl_gradient_agrees_with_torch_distributions():
    (mean, std), q = gaussians(0), gaussians(2)
    mean.requires_grad_(True), std.requires_grad_(True)
    ours = torch.autograd.grad(blocks.kl_divergence(mean, std, *q).sum(), [mean, std])
    theirs = torch.autograd.grad(kl_divergence(Normal(mean, std), Normal(*q)).sum(), [mean, std])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("exponent", range(-6, 4))
def test_inverse_softplus_inverts_softplus(exponent):
    x = torch.tensor([1.0, 3.3, 9.9]) * 10.0**exponent
    torch.testing.assert_close(torch.nn.functional.softplus(blocks.inverse_softplus(x)), x, rtol=1e-5, atol=0)


def test_a_gaussians_spread_is_clamped():
    mean, std = blocks.gaussian_from(torch.tensor([[1.0, 2, -100, 100]]))
    assert mean.tolist() == [[1.0, 2.0]]
    torch.testing.assert_close(std, torch.exp(torch.tensor([[-10.0, 2.0]])))
