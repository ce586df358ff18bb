import json

import numpy as np
import onnx
import pytest
import torch

from tests.training.conftest import COEFFICIENT
from tests.training.tiny import LAYOUT, E, H, Z, known_skills, world_config
from tests.training.worlds import TwoSidedWorld
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import FinetuningConfig
from training.contract.spec import META_POLICY
from training.finetuning import Finetuner, LearnerNetworks
from training.held_back import HELD_EVERY
from training.networks.blocks import kl_divergence
from training.rollout import Acting, rollout

EMBEDDING = np.array([0.3, -0.7], np.float32)


def episode(seed, length=4, reward=0.0):
    """An episode whose rows are random, with a reward at its end."""
    rows = np.random.default_rng(seed).standard_normal((length, LAYOUT.width)).astype(np.float32)
    rows[:, [LAYOUT.reward, LAYOUT.terminated]] = 0
    rows[-1, [LAYOUT.reward, LAYOUT.terminated]] = reward, float(reward > 0)
    return rows


def fed(learner, seeds, log_chosen=None):
    for seed in seeds:
        learner.add_episode(episode(seed, reward=float(seed % 3 == 0)), log_chosen)
    return learner


@pytest.fixture
def learner(exported):
    return Finetuner.from_bundle(exported, EMBEDDING, seed=5)


def test_it_starts_from_what_the_bundle_holds(learner, meta_networks):
    networks = learner.networks
    states, embeddings, skills = torch.randn(6, 4), torch.randn(6, E), torch.randn(6, Z)
    for ours, theirs in zip(networks.policy(states, embeddings), meta_networks.policy(states, embeddings), strict=True):
        assert torch.equal(ours, theirs)
    for name in ("critic", "target_critic"):
        assert torch.equal(getattr(networks, name)(states, skills, embeddings), getattr(meta_networks, name)(states, skills, embeddings))
    assert networks.coefficient().item() == pytest.approx(COEFFICIENT, rel=1e-5)
    assert networks.coefficient.target == world_config().finetuning.kl_target
    assert not any(
        parameter.requires_grad for parameter in [*networks.target_critic.parameters(), *networks.policy.skill_prior.parameters()]
    )


def test_the_bundles_finetuning_settings_are_used(learner):
    assert learner.config == world_config().finetuning
    assert learner.replay.capacity == 60


def test_learning_without_an_episode_is_refused(learner):
    with pytest.raises(RuntimeError, match="call add_episode first"):
        learner.update(1)


def test_the_first_updates_owed_are_a_warm_start_and_then_so_many_for_each_episode(learner):
    assert learner.updates_due() == 0
    fed(learner, range(4))
    assert learner.updates_due() == 6  # however many conditioning episodes there were
    learner.update(2)
    assert learner.updates_due() == 4
    fed(learner, [5, 6])
    assert learner.updates_due() == 4 + 2 * 3
    learner.update(10)
    assert (learner.updates_due(), learner.updates, learner.episodes) == (0, 12, 6)
    learner.update(1)
    assert learner.updates_due() == 0


def test_no_update_changes_nothing(learner):
    fed(learner, [0])
    before = learner.policy_weights()
    assert learner.update(0) == {}
    assert all(np.array_equal(before[name], value) for name, value in learner.policy_weights().items())


def test_an_update_moves_policy_critics_and_target_but_not_the_prior(learner):
    fed(learner, range(3))
    before = {name: value.clone() for name, value in learner.networks.state_dict().items()}
    metrics = learner.update(2)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics.keys() == {"critic_loss", "actor_loss", "kl", "alpha", "q_mean"}
    moved = {name for name, value in learner.networks.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} <= {"policy", "critic", "target_critic", "coefficient"}
    assert not any("skill_prior" in name or "features" in name for name in moved)
    assert {"policy.net.0.weight", "critic.net.last.weight", "target_critic.net.last.weight"} <= moved


def states_of(learner):
    return {
        **{f"networks.{name}": value for name, value in learner.networks.state_dict().items()},
        **{
            f"{name}.{index}.{key}": value
            for name, optimizer in learner.optimizers().items()
            for index, entries in optimizer.state_dict()["state"].items()
            for key, value in entries.items()
        },
        "rows": learner.replay.rows,
        "returns": learner.replay.discounted_return,
        "episode_returns": learner.replay.episode_return,
        "embedding": learner.task_embedding,
    }


@pytest.mark.parametrize("episodes", [3, 22])  # the latter wrap the ring of 60 rows
def test_a_loaded_learner_goes_on_bit_for_bit(learner, exported, tmp_path, episodes):
    fed(learner, range(episodes))
    learner.update(5)
    learner.save(tmp_path / "learner.safetensors")
    torch.rand(3)  # what else is drawn in the process does not matter
    loaded = Finetuner.load(exported, tmp_path / "learner.safetensors")
    metrics = []
    for one in (learner, loaded):
        fed(one, [100, 101])
        metrics.append(one.update(one.updates_due()))
    assert metrics[0] == metrics[1]
    assert (loaded.updates, loaded.episodes, loaded.owed) == (learner.updates, learner.episodes, learner.owed)
    assert np.array_equal(loaded.replay.added, learner.replay.added)
    ours, theirs = states_of(learner), states_of(loaded)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_the_first_rewarded_episode_is_learned_from_whenever_it_comes(learner):
    chosen = np.zeros(4, np.float32)
    for seed in range(HELD_EVERY - 1):
        learner.add_episode(episode(seed), chosen)
    learner.add_episode(episode(7, reward=1.0), chosen)  # its turn to be held back
    assert (len(learner.replay), learner.held_back.episodes) == (4 * HELD_EVERY, [])
    learner.add_episode(episode(8, reward=1.0), chosen)
    assert len(learner.held_back.episodes) == 1
    learner.update(1)


def test_an_episode_that_earns_more_than_any_before_is_learned_from_and_asks_for_the_task_anew(exported):
    config = exported.manifest.finetuning | {"infer_again": True}
    learner = Finetuner(LearnerNetworks.from_bundle(exported), FinetuningConfig.model_validate(config), np.zeros(E, np.float32), 0)
    chosen = np.zeros(4, np.float32)
    asked = [learner.add_episode(episode(seed, reward=reward), chosen) for seed, reward in enumerate([0.0, 1.0, 1.0, 0.0, 1.0, 2.0])]
    assert asked == [True, True, False, False, False, True]
    assert [held.rows[:, learner.networks.layout.reward].sum() for held in learner.held_back.episodes] == [0.0]
    assert learner.replay.episode_return[0, :20].max() == 2.0


def test_what_was_earned_at_best_outlives_a_checkpoint_and_one_of_an_earlier_release(learner, exported, tmp_path):
    fed(learner, [0])
    learner.add_episode(episode(1, reward=3.0))
    learner.save(path := tmp_path / "learner.safetensors")
    assert Finetuner.load(exported, path).best_return == 3.0
    tensors, note = load_checkpoint(path, modules={"networks": learner.networks}, optimizers=learner.optimizers())
    del note["best_return"]
    kept = {name: tensors[name] for name in ("task_embedding", "random_state", "rows", "discounted_return", "episode_return")}
    save_checkpoint(path, modules={"networks": learner.networks}, optimizers=learner.optimizers(), tensors=kept, note=note)
    assert Finetuner.load(exported, path).best_return == 3.0


def test_held_back_episodes_are_saved_and_loaded_bit_for_bit(learner, exported, tmp_path):
    fed(learner, range(2))
    fed(learner, range(2, 2 + 5 * HELD_EVERY), log_chosen=np.random.default_rng(0).standard_normal(4).astype(np.float32))
    assert len(learner.replay) == 4 * (2 + 5 * (HELD_EVERY - 1))
    learner.save(tmp_path / "learner.safetensors")
    loaded = Finetuner.load(exported, tmp_path / "learner.safetensors")
    for one in (learner, loaded):
        fed(one, [100, 101, 102], log_chosen=np.full(4, -1.5, np.float32))
    assert loaded.held_back.offered == learner.held_back.offered == 5 * HELD_EVERY + 3
    for ours, theirs in zip(learner.held_back.episodes, loaded.held_back.episodes, strict=True):
        assert np.array_equal(ours.rows, theirs.rows)
        assert np.array_equal(ours.log_chosen, theirs.log_chosen)
    assert torch.equal(learner.replay.rows, loaded.replay.rows)


def test_a_checkpoint_from_before_episodes_were_held_back_is_read(learner, exported, tmp_path):
    file = tmp_path / "learner.safetensors"
    fed(learner, range(2)).save(file)
    data = file.read_bytes()
    assert data.count(b', \\"offered\\": 0') == 1
    file.write_bytes(data.replace(b', \\"offered\\": 0', b" " * len(b', \\"offered\\": 0')))
    loaded = Finetuner.load(exported, file)
    assert (loaded.held_back.episodes, loaded.held_back.offered, loaded.episodes) == ([], 0, 2)


def test_a_save_before_any_update_keeps_the_warm_start_owed(learner, exported, tmp_path):
    fed(learner, range(2)).save(tmp_path / "learner.safetensors")
    loaded = Finetuner.load(exported, tmp_path / "learner.safetensors")
    assert (loaded.updates, loaded.updates_due(), loaded.episodes) == (0, 6, 2)
    np.testing.assert_array_equal(loaded.task_embedding, EMBEDDING)


def test_updates_in_portions_equal_updates_at_once(exported):
    at_once, portions = (fed(Finetuner.from_bundle(exported, EMBEDDING, seed=5), range(3)) for _ in range(2))
    at_once.update(6)
    for count in (1, 2, 3):
        portions.update(count)
    assert all(np.array_equal(value, portions.policy_weights()[name]) for name, value in at_once.policy_weights().items())


def test_the_seed_alone_decides_and_the_processs_own_randomness_stays(exported):
    weights = []
    for seed, noise in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(noise)
        learner = fed(Finetuner.from_bundle(exported, EMBEDDING, seed=seed), range(3))
        state = torch.get_rng_state()
        learner.update(2)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(learner.policy_weights()["net.0.weight"])
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_the_weights_names_and_shapes_are_those_of_the_exported_graph(learner, exported):
    initializers = {entry.name: tuple(entry.dims) for entry in onnx.load_from_string(exported.read(META_POLICY)).graph.initializer}
    for name, value in learner.policy_weights().items():
        assert initializers[name] == value.shape
        assert value.dtype == np.float32


def test_published_weights_do_not_change_with_later_updates(learner):
    fed(learner, range(3))
    published = learner.policy_weights()
    before = {name: value.copy() for name, value in published.items()}
    learner.update(3)
    assert all(np.array_equal(before[name], value) for name, value in published.items())


def test_the_kl_is_that_of_the_newest_states(learner):
    for seed in range(22):  # the ring of 60 rows has wrapped
        learner.add_episode(episode(seed))
    policy, embedding = learner.networks.policy, learner.task_embedding.expand(60, -1)
    states = torch.from_numpy(np.concatenate([episode(seed) for seed in range(22)])[-60:, LAYOUT.state])
    with torch.no_grad():
        expected = kl_divergence(*policy(states, embedding)).mean().item()
    assert learner.policy_kl() == pytest.approx(expected, rel=1e-5)


def test_only_the_newest_2048_states_are_judged(exported):
    config = FinetuningConfig(buffer=3000)
    learner = Finetuner(LearnerNetworks.from_bundle(exported), config, EMBEDDING, 0)
    old, new = np.full((1500, LAYOUT.width), 2, np.float32), np.full((2048, LAYOUT.width), -1, np.float32)
    for rows in (old, new):
        learner.add_episode(rows)
    with torch.no_grad():
        policy = learner.networks.policy
        expected = kl_divergence(*policy(-torch.ones(1, 4), learner.task_embedding[None])).item()
    assert learner.policy_kl() == pytest.approx(expected, rel=1e-4)


def act(policy, task, count, seed):
    config = world_config()
    acting = Acting.by_policy(torch.from_numpy(EMBEDDING).expand(count, -1))
    episodes, _ = rollout(
        TwoSidedWorld(),
        [task] * count,
        policy,
        known_skills(config).decoder,
        acting,
        horizon=H,
        layout=LAYOUT,
        rng=np.random.default_rng(seed),
    )
    return episodes


@pytest.mark.parametrize("side", [1, -1])
def test_learning_improves_the_return_in_the_target_task(exported, side):
    config = FinetuningConfig(**{**exported.manifest.finetuning, "warm_start_updates": 60, "updates_per_episode": 20, "kl_target": 6.0})
    learner = Finetuner(LearnerNetworks.from_bundle(exported), config, EMBEDDING, 0)
    before = np.mean([e.success for e in act(learner.networks.policy, (side,), 200, seed=0)])
    for result in act(learner.networks.policy, (side,), 8, seed=1):
        learner.add_episode(result.rows)
    for seed in range(8):
        learner.update(learner.updates_due())
        learner.add_episode(act(learner.networks.policy, (side,), 1, seed=10 + seed)[0].rows)
    after = np.mean([e.success for e in act(learner.networks.policy, (side,), 200, seed=0)])
    assert before < 0.75
    assert after > 0.95
    assert learner.policy_kl() < config.kl_limit


def test_what_is_saved_is_plain(learner, tmp_path):
    fed(learner, range(2)).save(tmp_path / "learner.safetensors")
    header = (tmp_path / "learner.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    entries = json.loads(header[8 : 8 + length])
    assert json.loads(entries["__metadata__"]["note"]) == {
        "episodes": 2,
        "updates": 0,
        "owed": 6,
        "added": 8,
        "offered": 0,
        "best_return": 1.0,
    }
    assert entries["tensor/rows"]["shape"] == [8, LAYOUT.width]


@pytest.mark.parametrize("to_the_first", [True, False])
def test_beginning_again_takes_an_earlier_policy_and_keeps_what_was_learned_of_the_task(learner, exported, tmp_path, to_the_first):
    first = learner.policy_weights()
    fed(learner, range(3))
    learner.update(learner.updates_due())
    earlier = first if to_the_first else learner.policy_weights()
    learner.update(5)
    critic = learner.networks.critic.state_dict()
    critic = {name: value.clone() for name, value in critic.items()}
    learner.save(tmp_path / "checkpoint.safetensors")
    for each in (learner, Finetuner.load(exported, tmp_path / "checkpoint.safetensors")):
        each.begin_again(None if to_the_first else earlier, np.full(E, 0.5, np.float32))
        assert each.task_embedding.tolist() == [0.5] * E
        assert all(np.array_equal(value, earlier[name]) for name, value in each.policy_weights().items())
        assert all(torch.equal(value, critic[name]) for name, value in each.networks.critic.state_dict().items())
        assert len(each.replay) > 0
        assert each.updates_due() == each.config.updates_per_episode
        each.update(each.updates_due())
    assert not any(np.array_equal(value, earlier[name]) for name, value in each.policy_weights().items())
    assert all(np.array_equal(value, learner.policy_weights()[name]) for name, value in each.policy_weights().items())
