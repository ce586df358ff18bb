import json

import numpy as np
import pytest
import torch

from tests.training.tiny import LAYOUT, A, S, Z, known_skills, world_config
from training.belief import untrained_dynamics
from training.config import BeliefConfig
from training.contract.errors import ConfigError
from training.meta_learner import MetaNetworks
from training.skill_dynamics import fit_skill_dynamics, place_projection

assert A < Z < S
GOALS = np.array([[0, 0], [4, 1], [-3, 5], [2, -6]])


@pytest.fixture
def networks():
    torch.manual_seed(0)
    config = world_config()
    return MetaNetworks.fresh(known_skills(config), LAYOUT, config.networks)


def transitions(count=4000, seed=0):
    """A skill moves the first two entries, and sets the third to its own last one."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, LAYOUT.width)).astype(np.float32)
    state, skill = rows[:, LAYOUT.state], rows[:, LAYOUT.skill]
    after = state.copy()
    after[:, :2] += 0.3 * skill[:, :2]
    after[:, 2] = skill[:, 2]
    rows[:, LAYOUT.next_state] = after
    return rows


def fitted(networks, run_dir, **changed):
    config = world_config(belief={"dynamics_updates": 600, "dynamics_hidden": (32,), "batch": 256} | changed)
    torch.manual_seed(2)
    dynamics = untrained_dynamics(config, networks)
    fit_skill_dynamics(dynamics, transitions(), LAYOUT, config.belief, run_dir, seed=1)
    return dynamics.eval()


def test_it_learns_where_skills_lead(networks, tmp_path):
    dynamics, unseen = fitted(networks, tmp_path), torch.from_numpy(transitions(200, seed=9))
    with torch.no_grad():
        after = dynamics.after(unseen[:, LAYOUT.state], unseen[:, LAYOUT.skill])
    error = (after - unseen[:, LAYOUT.next_state]).square().mean(0).sqrt()
    changes = (unseen[:, LAYOUT.next_state] - unseen[:, LAYOUT.state]).std(0)
    assert (error[:3] < 0.25 * changes[:3]).all()
    last = json.loads((tmp_path / "dynamics.jsonl").read_text().splitlines()[-1])
    assert last["held_out"] < 0.1


def test_a_draw_is_the_priors_and_leads_where_its_skill_does(networks, tmp_path):
    dynamics = fitted(networks, tmp_path, dynamics_updates=2)
    state, noise = torch.randn(5, S), torch.randn(5, Z)
    with torch.no_grad():
        skill, after = dynamics(state, noise)
        mean, std = networks.skills.prior(state)
        torch.testing.assert_close(skill, mean + std * noise)
        torch.testing.assert_close(after, dynamics.after(state, skill))


def test_the_same_seed_learns_the_same_and_leaves_the_prior_alone(networks, tmp_path):
    before = {name: value.clone() for name, value in networks.skills.prior.state_dict().items()}
    once, again = (fitted(networks, tmp_path / name, dynamics_updates=5) for name in "ab")
    for name, value in once.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)
    for name, value in networks.skills.prior.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(value, once.prior.state_dict()[name]), name


def rewarded(rng, radius=0.5, count=40):
    """States about four goals; two more entries vary as they do anywhere, one of them on another scale."""
    return [
        np.concatenate([goal + radius * rng.standard_normal((count, 2)), [1, 30] * rng.standard_normal((count, 2))], 1).astype(np.float32)
        for goal in GOALS
    ]


def anywhere(rng, count=3000):
    return np.concatenate([4 * rng.standard_normal((count, 2)), [1, 30] * rng.standard_normal((count, 2))], 1).astype(np.float32)


def test_places_are_told_apart_by_what_rewards_depend_on():
    rng = np.random.default_rng(0)
    projection = place_projection(anywhere(rng), rewarded(rng))
    assert projection.dtype == np.float32
    assert projection.shape == (2, 4)
    images = [group @ projection.T for group in rewarded(rng)]
    within = np.concatenate([np.linalg.norm(group[::2] - group[1::2], axis=1) for group in images])
    assert np.quantile(within, 0.9) < 1.1, "states of one task are one place"
    between = [np.linalg.norm(a.mean(0) - b.mean(0)) for i, a in enumerate(images) for b in images[:i]]
    assert min(between) > 2, "those of others are not"
    faster = np.array([[0, 0, 2, 60]], np.float32) @ projection.T
    assert np.linalg.norm(faster) < 0.5, "speed does not count"


def test_a_wider_reward_makes_wider_places():
    near, far = (place_projection(anywhere(np.random.default_rng(0)), rewarded(np.random.default_rng(0), radius)) for radius in (0.3, 0.6))
    assert np.linalg.norm(near) / np.linalg.norm(far) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("seen", [[], [np.zeros((0, 4), np.float32), np.zeros((1, 4), np.float32)]])
def test_without_rewards_places_cannot_be_told(seen):
    with pytest.raises(ConfigError, match=r"no training task was rewarded twice: raise belief\.episodes"):
        place_projection(anywhere(np.random.default_rng(0)), seen)


def test_goals_that_are_single_states_have_places_all_the_same():
    exact = [np.repeat(each[:1], 5, 0) for each in rewarded(np.random.default_rng(0))]
    projection = place_projection(anywhere(np.random.default_rng(0)), exact)
    assert np.isfinite(projection).all()


def test_rewards_anywhere_tell_nothing():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="do not tell tasks apart"):
        place_projection(anywhere(rng), [10 * anywhere(rng, 50) for _ in range(3)])


def test_by_default_there_is_none():
    assert BeliefConfig().dynamics_updates == 0
