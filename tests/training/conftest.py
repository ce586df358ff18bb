"""One meta-trained-looking set of networks, exported once: the export takes seconds."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.target_sessions import watch_choices
from tests.training.tiny import LAYOUT, TINY_SPEC, S, known_skills, world_config
from training.belief import TrainedBelief, TrainedNovelty, untrained_dynamics
from training.contract.bundle import Bundle
from training.export import export_bundle
from training.meta_learner import MetaNetworks

COEFFICIENT = 3e-3


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and a busy machine loses by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def meta_networks() -> MetaNetworks:
    """Networks with weights of visible size, as training would leave them; not to be changed by a test."""
    torch.manual_seed(3)
    config = world_config()
    networks = MetaNetworks.fresh(known_skills(config), LAYOUT, config.networks)
    with torch.no_grad():
        for parameter in networks.policy.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return networks


@pytest.fixture(scope="session")
def untrained_belief(meta_networks: MetaNetworks) -> TrainedBelief:
    """Three particles, and a decoder and a model of where skills lead as they come; not to be changed by a test."""
    torch.manual_seed(4)
    config = world_config(belief={"particles": 3, "hidden": (7,), "dynamics_updates": 1, "dynamics_hidden": (9,)})
    novelty = TrainedNovelty(torch.randn(2, S), untrained_dynamics(config, meta_networks).eval())
    belief = replace(TrainedBelief.untrained(config, meta_networks), novelty=novelty)
    belief.particles.copy_(torch.randn(3, belief.particles.shape[1]))
    return belief


@pytest.fixture(scope="session")
def exported(meta_networks: MetaNetworks, untrained_belief: TrainedBelief, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Those networks as a bundle; not to be changed by a test."""
    return export_bundle(
        tmp_path_factory.mktemp("exported") / "tiny",
        config=world_config(),
        networks=meta_networks,
        coefficient=COEFFICIENT,
        spec=TINY_SPEC,
        metrics={"meta_updates": 7.0},
        command="python -m training export --config tiny",
        belief=untrained_belief,
    )


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What each episode was told to act with: the embeddings of its first skill, whether by the plain prior, the policies."""
    seen: list[tuple[Any, ...]] = []

    def watch(choice, acting, policies, skill_index, states, active):
        if skill_index == 0:
            seen.append((choice.embeddings, acting.plain_prior.tolist(), policies))
        return choice

    watch_choices(monkeypatch, watch)
    return seen
