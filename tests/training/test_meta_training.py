import json

import numpy as np
import pytest
import torch

from tests.training.tiny import E, H, S, known_skills, world_config
from tests.training.worlds import TwoSidedWorld
from training import meta_learner
from training.contract.errors import ConfigError, TrainingDiverged
from training.meta_learner import MetaLearner, posterior_means
from training.meta_training import MetaTrainer

TASKS = [(1,), (-1,)]
META = {
    "updates": 400,
    "updates_per_epoch": 20,
    "learning_rate": 3e-3,
    "checkpoint_epochs": 2,
    "policy_posterior_target": 6.0,
    "policy_prior_target": 6.0,
}


def trainer(run_dir, tasks=TASKS, **meta):
    config = world_config(meta=META | meta)
    torch.manual_seed(0)
    return MetaTrainer(config, known_skills(config), TwoSidedWorld(), tasks, run_dir)


def report(run_dir):
    return [json.loads(line) for line in (run_dir / "meta.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("meta")
    made = trainer(run_dir, tasks=TASKS * 3, posterior_tasks=3)
    before = {name: value.clone() for name, value in made.networks.skills.state_dict().items()}
    made.run()
    return made, before


def success(made, embedding_of, count=100):
    """Success of each task with the embedding that ``embedding_of`` gives."""
    from training.rollout import Acting, rollout

    tasks = TASKS * count
    embeddings = torch.stack([embedding_of(index % 2) for index in range(len(tasks))])
    episodes, _ = rollout(
        made.simulator, tasks, made.networks.policy, made.networks.skills.decoder, Acting.by_policy(embeddings),
        horizon=H, layout=made.layout, rng=np.random.default_rng(0),
    )  # fmt: skip
    return np.mean([episode.success for episode in episodes])


def test_the_posterior_learns_which_task_it_is_in(trained, tmp_path):
    made, _ = trained
    mean, _ = posterior_means(made.networks, made.replay, [0, 1], 12, torch.Generator().manual_seed(0))
    right, wrong = success(made, lambda task: mean[task]), success(made, lambda task: mean[1 - task])
    untrained = success(trainer(tmp_path), lambda task: torch.zeros(E))
    assert right > 0.9
    assert right > untrained + 0.2
    assert right > wrong + 0.5
    lines = report(made.run_dir)
    assert np.mean([line["posterior_return"] for line in lines[-4:]]) > np.mean([line["posterior_return"] for line in lines[:4]]) + 0.15


def test_training_reports_every_epoch_and_keeps_its_checkpoint(trained):
    made, _ = trained
    lines = report(made.run_dir)
    assert [line["at"] for line in lines] == list(range(20, 401, 20))
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert made.checkpoint.exists()
    assert (made.updates, made.epoch) == (400, 20)


def test_the_skills_stay_as_they_were(trained):
    made, before = trained
    for name, value in made.networks.skills.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_coefficients_have_risen_or_stayed(trained):
    made, _ = trained
    config = made.config.meta
    for name, coefficient in made.learner.coefficients().items():
        assert (coefficient() >= getattr(config, f"{name}_coefficient") * 0.9999).all()
    assert made.learner.encoder_posterior().shape == (6,)


def test_a_finished_training_is_not_trained_again(trained, monkeypatch):
    made, _ = trained
    monkeypatch.setattr(MetaLearner, "update", lambda *_, **__: pytest.fail("made an update"))
    again = trainer(made.run_dir, tasks=TASKS * 3, posterior_tasks=3)
    again.run()
    for one, other in zip(made.networks.policy.parameters(), again.networks.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_too_few_tasks_for_the_posterior_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"meta\.prior_tasks is 2 and there are 2 training tasks"):
        trainer(tmp_path, prior_tasks=2)


def test_every_figure_of_an_update_is_finite(tmp_path):
    made = trainer(tmp_path)
    made.collect()
    assert all(torch.isfinite(value) for value in made.learner.update(made.replay, made.replay).values())


def test_a_training_that_diverges_ends_and_is_not_kept(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"meta: training has diverged, expected finite numbers after \d+ updates"):
        trainer(tmp_path, learning_rate=1e20).run()
    assert not (tmp_path / "meta.safetensors").exists()


def test_what_was_kept_before_a_training_diverged_stays(tmp_path):
    trainer(tmp_path, updates=20).run()
    before = (tmp_path / "meta.safetensors").read_bytes()
    longer = trainer(tmp_path, updates=40)
    step = longer.learner.update
    longer.learner.update = lambda *arguments, **options: step(*arguments, **options) | {"critic_loss": torch.tensor(torch.nan)}
    with pytest.raises(TrainingDiverged, match="critic_loss is nan"):
        longer.run()
    assert (tmp_path / "meta.safetensors").read_bytes() == before


def test_every_transition_has_its_own_embedding_and_the_actor_does_not_teach_the_encoder(tmp_path, monkeypatch):
    made, seen = trainer(tmp_path), {}
    made.collect()
    for name in ("critic_loss", "actor_terms"):
        wrapped = getattr(meta_learner, name)

        def spy(batch, embedding, *networks, _name=name, _wrapped=wrapped):
            seen[_name] = embedding
            return _wrapped(batch, embedding, *networks)

        monkeypatch.setattr(meta_learner, name, spy)
    made.learner.update(made.replay, made.replay)
    assert seen["critic_loss"].shape == (64, E)
    assert len(seen["critic_loss"].unique(dim=0)) == 64
    assert seen["critic_loss"].requires_grad
    assert not seen["actor_terms"].requires_grad


def test_an_update_changes_what_it_should(tmp_path):
    made = trainer(tmp_path)
    made.collect()
    before = {name: [value.clone() for value in module.state_dict().values()] for name, module in made.networks.modules().items()}
    made.learner.update(made.replay, made.replay)
    changed = {
        name: any(not torch.equal(now, then) for now, then in zip(module.state_dict().values(), before[name], strict=True))
        for name, module in made.networks.modules().items()
    }
    assert changed == {"skills": False, "encoder": True, "policy": True, "critic": True, "target_critic": True}
    online, slow = made.networks.critic.net.last.weight, made.networks.target_critic.net.last.weight
    start = next(then for then in before["target_critic"] if then.shape == slow.shape)
    torch.testing.assert_close(slow, torch.lerp(start, online.detach(), made.config.meta.polyak))


def test_tasks_of_a_batch_are_split_into_prior_and_posterior_ones(tmp_path):
    made = trainer(tmp_path, tasks=[(1,), (-1,), (1,), (-1,), (1,)], prior_tasks=2, posterior_tasks=2)
    assert made.learner._choose_tasks(made.replay) == ([], [], [])
    made.collect()
    chosen, few, many = made.learner._choose_tasks(made.replay)
    assert (len(few), len(many)) == (2, 2)
    assert chosen == few + many
    assert len(set(chosen)) == 4


def test_the_posterior_of_a_task_without_data_is_the_task_prior(tmp_path):
    made = trainer(tmp_path)
    made.replay.add(1, np.ones((3, made.layout.width), np.float32))
    mean, std = posterior_means(made.networks, made.replay, [0, 1], 5, torch.Generator())
    assert mean[0].tolist() == [0.0] * E
    assert std[0].tolist() == [1.0] * E
    assert not torch.equal(mean[1], mean[0])


def test_an_epoch_collects_two_episodes_a_task(tmp_path):
    made = trainer(tmp_path, relabelled_episodes=0)
    made.collect()
    for task in (0, 1):
        rows = made.replay.rows[task, : made.replay.size(task)]
        starts = (rows[:, 0] == 0).sum() + 0
        assert starts == 2


def test_relabelled_episodes_are_true_in_the_task_that_they_are_given_to(tmp_path):
    made = trainer(tmp_path, tasks=[(1,), (-1,)] * 4, relabelled_episodes=3)
    for _ in range(3):
        made.collect()
    plain = trainer(tmp_path, tasks=[(1,), (-1,)] * 4, relabelled_episodes=0)
    for _ in range(3):
        plain.collect()
    assert (made.replay.added > plain.replay.added).any()
    for task, (side,) in enumerate(made.tasks):
        rows = made.replay.rows[task, : made.replay.size(task)]
        reached = rows[:, made.layout.next_state.start] * side >= 1
        assert torch.equal(rows[:, made.layout.reward] == 1, reached)
        assert torch.equal(rows[:, made.layout.terminated] == 1, reached)
        assert (rows[:, 0] * side < 1).all()


@pytest.mark.parametrize(("options", "expected"), [({}, 60), ({"return_bound": False}, 0), ({"return_bound_updates": 25}, 25)])
def test_the_bound_on_the_target_is_dropped_after_the_updates_it_is_for(tmp_path, monkeypatch, options, expected):
    update, bounded = MetaLearner.update, []

    def noting(learner, *replays, return_bound, **options):
        bounded.append(return_bound)
        return update(learner, *replays, return_bound=return_bound, **options)

    monkeypatch.setattr(MetaLearner, "update", noting)
    trainer(tmp_path, updates=60, **options).run()
    assert bounded == [True] * expected + [False] * (60 - expected)


def test_blind_updates_teach_policy_and_critics_but_not_the_encoder(tmp_path):
    made = trainer(tmp_path)
    made.collect()
    before = [value.clone() for value in made.networks.encoder.parameters()]
    policy = [value.clone() for value in made.networks.policy.net.parameters()]
    metrics = made.learner.update(made.replay, made.replay, blind=True)
    assert all(map(torch.equal, made.networks.encoder.parameters(), before))
    assert not any(map(torch.equal, made.networks.policy.net.parameters(), policy))
    assert float(metrics["encoder_kl"]) == 0
    made.learner.update(made.replay, made.replay)
    assert not all(map(torch.equal, made.networks.encoder.parameters(), before))


def test_while_blind_policy_and_critics_make_no_difference_between_embeddings_and_learn_it_after_that(tmp_path):
    def differs():
        states, skills = torch.randn(8, S), torch.randn(8, made.layout.skill_dim)
        networks, embeddings = made.networks, (torch.zeros(8, E), torch.randn(8, E))
        policy = [networks.policy(states, embedding)[0] for embedding in embeddings]
        critics = [[critic(states, skills, e) for e in embeddings] for critic in (networks.critic, networks.target_critic)]
        return [not torch.equal(*answers) for answers in (policy, *critics)]

    made = trainer(tmp_path, blind_updates=2)
    made.collect()
    for _ in range(2):
        made.learner.update(made.replay, made.replay, blind=True)
        assert differs() == [False] * 3
    made.learner.update(made.replay, made.replay)
    assert differs() == [True] * 3


def test_the_first_updates_are_blind(tmp_path, monkeypatch):
    update, blind = MetaLearner.update, []

    def noting(learner, *replays, **options):
        blind.append(options["blind"])
        return update(learner, *replays, **options)

    monkeypatch.setattr(MetaLearner, "update", noting)
    trainer(tmp_path, updates=40, blind_updates=25).run()
    assert blind == [True] * 25 + [False] * 15


def test_small_contexts_may_be_empty(tmp_path):
    made = trainer(tmp_path, tasks=TASKS * 2, prior_context=0, posterior_tasks=2, context_pool=10, prior_tasks=2)
    made.collect()
    mean, std = made.learner._encode(made.pool, [0, 1], [2, 3], blind=False)
    assert mean[:2].tolist() == [[0.0] * E] * 2
    assert std[:2].tolist() == [[1.0] * E] * 2
    assert not torch.equal(mean[2], mean[0])
    assert all(torch.isfinite(value) for value in made.learner.update(made.replay, made.contexts).values())


def test_the_same_seed_trains_the_same_networks(tmp_path):
    one, other = (trainer(tmp_path / name, updates=20).run() for name in "ab")
    for left, right in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(left, right)
