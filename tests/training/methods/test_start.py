import numpy as np
import pytest
import torch

from tests.training.conftest import COEFFICIENT
from tests.training.tiny import LAYOUT, MAX_CONTEXT, E, Z, world_config
from training.contract.errors import ConfigError
from training.methods.start import start_from_bundle


def test_a_bundle_gives_the_skills_and_networks_that_it_was_made_of(exported, meta_networks):
    start = start_from_bundle(exported, world_config())
    states, skills, embeddings = torch.randn(6, 4), torch.randn(6, Z), torch.randn(6, E)
    context, mask = torch.randn(2, MAX_CONTEXT, LAYOUT.width), torch.ones(2, MAX_CONTEXT)
    networks = start.networks
    pairs = [
        (start.skills.decoder(states, skills), meta_networks.skills.decoder(states, skills)),
        *zip(start.skills.prior(states), meta_networks.skills.prior(states), strict=True),
        *zip(networks.policy(states, embeddings), meta_networks.policy(states, embeddings), strict=True),
        *zip(networks.encoder(context, mask), meta_networks.encoder(context, mask), strict=True),
        (networks.critic(states, skills, embeddings), meta_networks.critic(states, skills, embeddings)),
        (networks.target_critic(states, skills, embeddings), meta_networks.target_critic(states, skills, embeddings)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert start.coefficient == pytest.approx(COEFFICIENT, rel=1e-5)
    assert start.meta_seed == world_config().seed
    assert exported.manifest.digest[:12] in start.origin


def test_a_bundle_gives_the_same_skills_every_time(exported):
    first, again = (start_from_bundle(exported, world_config()).skills.state_dict() for _ in range(2))
    assert first
    for name, value in first.items():  # or a meta-training from a bundle could not go on after an interruption
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_a_bundle_gives_its_belief(exported, untrained_belief):
    ours, theirs = start_from_bundle(exported, world_config()).belief, untrained_belief.belief()
    states, embeddings = torch.randn(6, 4).numpy(), torch.randn(6, E).numpy()
    np.testing.assert_allclose(ours.particles, theirs.particles)
    np.testing.assert_allclose(ours.reward_probability(states, embeddings), theirs.reward_probability(states, embeddings), atol=1e-5)


def test_a_bundle_of_other_sizes_is_refused(exported):
    with pytest.raises(ConfigError, match="another skills, networks"):
        start_from_bundle(exported, world_config(skills={"horizon": 6}, networks={"task_embedding_dim": 3}))
