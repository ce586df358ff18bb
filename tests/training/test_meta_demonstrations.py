"""Meta-training that is given demonstrations: in its contexts, in its replay, and to imitate."""

import copy

import numpy as np
import pytest
import torch

from tests.training.tiny import A, H, S, known_skills, world_config
from tests.training.worlds import TwoSidedWorld
from training.contract.errors import ConfigError
from training.data import Episode
from training.meta_learner import MetaLearner
from training.meta_training import MetaTrainer

TASKS = [(1,), (-1,)]
META = {
    "updates": 1,
    "updates_per_epoch": 1,
    "learning_rate": 3e-3,
    "checkpoint_epochs": 2,
    "policy_posterior_target": 6.0,
    "policy_prior_target": 6.0,
    "relabelled_episodes": 0,
    "demonstrations": 5,
}


def demonstrated(tmp_path, **changed):
    config = world_config(meta=META | changed)
    walk = np.zeros((2 * H + 1, S), np.float32)
    walk[:, 0] = np.linspace(0, 1.5, len(walk))  # to the right, where the first task's goal is
    offline = [Episode(walk, np.zeros((2 * H, A), np.float32))]
    torch.manual_seed(0)
    return MetaTrainer(config, known_skills(config), TwoSidedWorld(end=1.3), TASKS, tmp_path, offline=offline), walk


def test_contexts_hold_the_demonstrations_that_a_task_rewards_and_the_replay_none(tmp_path):
    made, walk = demonstrated(tmp_path, context_pool=10)
    made.run()
    contexts, masks = zip(*(made.contexts.sample_context([0, 1], 64, made.learner.generator) for _ in range(20)), strict=True)
    rewards = [torch.cat([c[task][m[task].bool()] for c, m in zip(contexts, masks, strict=True)])[:, made.layout.reward] for task in (0, 1)]
    assert rewards[0].any(), "only the demonstration gets so far"
    assert not rewards[1].any()
    assert not made.replay.rows[..., made.layout.reward].any()
    starts = torch.cat([c[0][m[0].bool()] for c, m in zip(contexts, masks, strict=True)])[:, 0]
    assert set(walk[[0, H], 0].tolist()) <= set(starts.tolist())


def test_demonstrations_without_a_pool_of_contexts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"set meta\.context_pool too"):
        demonstrated(tmp_path)


def test_the_policy_imitates_what_demonstrations_do_in_each_task(tmp_path):
    made, walk = demonstrated(tmp_path, context_pool=10, imitation=1.0, updates=200, updates_per_epoch=50)
    made.run()
    states = torch.from_numpy(walk[[0, H]])
    with torch.no_grad():
        wanted, _ = made.networks.skills.encoder(torch.from_numpy(np.stack([walk[:H], walk[H : 2 * H]])), torch.zeros(2, H, A))
        embedding, _ = made.networks.encoder(*made.contexts.sample_context([0], 64, made.learner.generator))
        mean, _, prior_mean, _ = made.networks.policy(states, embedding.expand(2, -1))
    assert made.learner.imitated is not None
    assert made.learner.imitated.known == {0}
    assert (mean - wanted).norm() < 0.5 * (prior_mean - wanted).norm()


def test_the_weight_of_imitation_falls_to_nothing(tmp_path, monkeypatch):
    made, _ = demonstrated(tmp_path, context_pool=10, imitation=0.4, imitation_updates=4, updates=6)
    weights, update = [], MetaLearner.update

    def noting(learner, *replays, **options):
        weights.append(options["imitation"])
        return update(learner, *replays, **options)

    monkeypatch.setattr(MetaLearner, "update", noting)
    made.run()
    assert weights == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])


def test_imitation_trains_the_task_encoder_too(tmp_path, monkeypatch):
    made, _ = demonstrated(tmp_path, context_pool=10, imitation=1.0, updates=20)  # a policy at the prior does not look at the task yet
    made.run()
    other = copy.deepcopy(made.learner)
    monkeypatch.setattr(MetaLearner, "_choose_tasks", lambda *_: ([1, 0], [1], [0]))  # the first task is demonstrated
    for learner, weight in ((made.learner, 1.0), (other, 0.0)):
        torch.manual_seed(0)
        learner.update(made.replay, made.contexts, imitation=weight)  # of one step, only its own gradient tells encoders apart
    assert any(not torch.equal(a, b) for a, b in zip(made.networks.encoder.parameters(), other.networks.encoder.parameters(), strict=True))
    for a, b in zip(made.networks.critic.parameters(), other.networks.critic.parameters(), strict=True):
        assert torch.equal(a, b)


def test_critics_learn_from_the_demonstrations_that_earn_something(tmp_path):
    made, walk = demonstrated(tmp_path, context_pool=10, replayed_demonstrations=True, checkpoint_epochs=1)
    made.run()
    rows = made.replay.rows[0, : made.replay.size(0)]
    np.testing.assert_array_equal(rows[:2, 0], walk[[0, H - 1], 0])  # the world ends after 2 H - 1 steps
    assert rows[:2, made.layout.reward].tolist() == [0.0, 1.0]
    assert rows[1, made.layout.terminated] == 1.0
    assert not made.replay.rows[1, : made.replay.size(1), made.layout.reward].any()


@pytest.mark.parametrize("setting", [{"imitation": 0.1}, {"replayed_demonstrations": True}])
def test_what_takes_demonstrations_is_refused_without_them(tmp_path, setting):
    with pytest.raises(ConfigError, match=r"meta\.demonstrations is 0"):
        demonstrated(tmp_path, demonstrations=0, **setting)
