import copy

import numpy as np
import pytest
import torch

from tests.training.test_rollout import run
from tests.training.tiny import LAYOUT, H, known_skills, world_config
from tests.training.worlds import CountingWorld, TwoSidedWorld
from training.belief import BeliefTrainer, Sightings, TrainedBelief
from training.contract.errors import ConfigError
from training.meta_learner import MetaNetworks
from training.relabelling import Relabeller

TASKS = [(1,), (-1,)]
MEAN, SCALE = torch.tensor([[2.0, 0.0], [-2.0, 1.0]]), torch.tensor([[0.1, 0.2], [0.1, 0.2]])
SMALL = {"particles": 40, "episodes": 60, "updates": 150, "batch": 128, "hidden": (16,), "prior_share": 0.1}


def trainer(networks, run_dir, **changed):
    return BeliefTrainer(world_config(belief=SMALL | changed), networks, TwoSidedWorld(), TASKS, run_dir)


def test_sightings_know_where_a_reward_came_and_where_none_did_before_the_end():
    world = CountingWorld(13)
    episodes, paths = run(world, [100], paths=True)
    seen = Sightings.of(episodes, paths, Relabeller(OnlyTheEndPays(13), [4, 13, 50], LAYOUT, H))
    assert seen.states[:, 0].tolist() == [5, 10, 13]
    assert seen.in_vain.tolist() == [[False, False, False], [True, True, False], [True, True, True]]
    assert [states[:, 0].tolist() for states in seen.rewarded] == [[4], [13], []]


class OnlyTheEndPays(CountingWorld):
    def judge(self, path, tasks):
        rewards, ends, terminated = super().judge(path, tasks)
        return np.maximum(rewards - 1, 0), ends, terminated


@pytest.fixture(scope="module")
def learned(meta_networks, tmp_path_factory):
    made = trainer(meta_networks, tmp_path_factory.mktemp("belief"))
    made._posteriors = lambda: (MEAN, SCALE)  # the encoder is untrained and cannot tell one side from the other
    return made, made.run()


def test_the_decoder_expects_the_reward_where_the_tasks_embedding_has_it(learned):
    _, belief = learned
    places = torch.zeros(3, 4)
    places[:, 0] = torch.tensor([1.1, 0.0, -1.1])
    with torch.no_grad():
        right, left = (belief.decoder(places, embedding.expand(3, -1)).numpy() for embedding in MEAN)
    assert right.argmax() == 0
    assert left.argmax() == 2
    assert max(right[1], left[1]) < 0.2


def test_particles_lie_about_the_posteriors_and_some_anywhere(learned):
    _, belief = learned
    assert belief.particles.shape == (40, 2)
    about = belief.particles[:36]
    way = (about[:, :1] - MEAN[:1, :1]) / (MEAN[1:, :1] - MEAN[:1, :1])  # 0 at the first task, 1 at the second
    assert ((way > -1) & (way < 2)).all()
    assert (about - (MEAN[:1] + way * (MEAN[1:] - MEAN[:1]))).abs().max() < 12 * 1.5 * 0.2
    assert (way < 0.2).any()
    assert (way > 0.8).any()
    assert ((way > 0.3) & (way < 0.7)).any()


def test_the_same_seed_learns_the_same_belief(meta_networks, tmp_path):
    once, again = (trainer(meta_networks, tmp_path / name, updates=5).run() for name in "ab")
    assert torch.equal(once.particles, again.particles)
    for one, other in zip(once.decoder.parameters(), again.decoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_belief_is_the_same_after_it_was_saved(learned, meta_networks, tmp_path):
    made, belief = learned
    belief.save(tmp_path / "belief.safetensors", made.config, meta_networks)
    again = TrainedBelief.load(tmp_path / "belief.safetensors", made.config, meta_networks)
    states, embeddings = np.ones((3, 4), np.float32), np.zeros((3, 2), np.float32)
    assert torch.equal(again.particles, belief.particles)
    np.testing.assert_array_equal(
        again.belief().reward_probability(states, embeddings), belief.belief().reward_probability(states, embeddings)
    )


def test_a_belief_of_other_networks_or_settings_is_refused(learned, meta_networks, tmp_path):
    made, belief = learned
    belief.save(file := tmp_path / "belief.safetensors", made.config, meta_networks)
    widened = made.config.model_copy(update={"belief": made.config.belief.model_copy(update={"widening": 9.0})})
    others = copy.deepcopy(meta_networks)
    with torch.no_grad():
        next(others.encoder.parameters()).add_(1.0)
    for config, networks in ((widened, meta_networks), (made.config, others)):
        with pytest.raises(ConfigError, match="run the stage 'belief' again"):
            TrainedBelief.load(file, config, networks)


def test_meta_trained_networks_are_left_as_they_are(meta_networks, tmp_path):
    before = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in meta_networks.modules().items()}
    trainer(meta_networks, tmp_path, updates=3).run()
    for name, module in meta_networks.modules().items():
        assert all(torch.equal(before[name][k], v) for k, v in module.state_dict().items()), name


def test_one_task_alone_has_no_neighbours(tmp_path):
    torch.manual_seed(0)
    config = world_config(belief=SMALL | {"updates": 2, "episodes": 4})
    networks = MetaNetworks.fresh(known_skills(config), LAYOUT, config.networks)
    assert BeliefTrainer(config, networks, TwoSidedWorld(), [(1,)], tmp_path).run().particles.shape == (40, 2)


def test_without_any_reward_there_is_nothing_to_learn_from(meta_networks, tmp_path):
    config = world_config(belief=SMALL | {"episodes": 2})
    with pytest.raises(ConfigError, match=r"none of the 1 training tasks was rewarded: raise belief.episodes \(now 2\)"):
        BeliefTrainer(config, meta_networks, OnlyTheEndPays(6), [1000], tmp_path).run()
