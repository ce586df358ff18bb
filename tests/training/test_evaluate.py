import json

import numpy as np
import pytest
import torch

from tests.training.target_sessions import EPISODES, SEEDS, TASKS, K, run_sessions
from tests.training.tiny import LAYOUT, MAX_CONTEXT
from tests.training.worlds import TwoSidedWorld
from training import evaluate
from training.contract.context import select_context
from training.evaluate import write_results
from training.finetuning import Finetuner


def test_a_rewarded_session_learns_from_all_its_episodes_once_it_has_conditioned(exported, meta_networks, acted):
    sessions = run_sessions(exported, meta_networks)
    assert [(session.task, session.seed) for session in sessions] == [(task, seed) for seed in SEEDS for task in TASKS]
    rewarded = [session for session in sessions if any(session.successes[:K])]
    assert rewarded
    for session in rewarded:
        assert (session.learner.episodes, session.learner.updates) == (EPISODES, 6 + 3 * (EPISODES - K))
        rows = np.concatenate(session.context)
        assert np.array_equal(session.learner.replay.rows[0, : len(rows)].numpy(), rows)
        index = sessions.index(session)
        for embeddings, plain, policies in acted[K:]:
            assert torch.equal(embeddings[index], session.learner.task_embedding)
            assert not plain[index]
            assert policies[index] is session.policy is session.learner.networks.policy
    assert acted[0][2] is meta_networks.policy


def test_after_conditioning_the_posterior_of_the_whole_context_acts(exported, meta_networks, acted):
    sessions = run_sessions(exported, meta_networks, finetuning=False)
    index = next(index for index, session in enumerate(sessions) if any(session.successes[:K]))
    assert all(session.learner is None for session in sessions)
    for episode in range(K, EPISODES):
        rows = select_context(np.concatenate(sessions[index].context[:episode]), LAYOUT, MAX_CONTEXT)
        with torch.no_grad():
            mean, _ = meta_networks.encoder(torch.from_numpy(rows)[None], torch.ones(1, len(rows)))
        torch.testing.assert_close(acted[episode][0][index], mean[0])


def test_a_session_without_reward_goes_on_exploring_and_learns_nothing(exported, meta_networks, acted):
    sessions = run_sessions(exported, meta_networks, TwoSidedWorld(end=50.0))
    assert all(session.learner is None for session in sessions)
    assert [plain[0] for _, plain, _ in acted] == [False] * K + [False, True, False, True]
    assert len({embeddings[0].numpy().tobytes() for embeddings, plain, _ in acted if not plain[0]}) == EPISODES - 2


def test_the_posteriors_embedding_is_that_of_the_first_rewarded_context(exported, meta_networks):
    (session, *_) = [s for s in run_sessions(exported, meta_networks) if any(s.successes[:K])]
    rows = select_context(np.concatenate(session.context[:K]), LAYOUT, MAX_CONTEXT)
    with torch.no_grad():
        mean, _ = meta_networks.encoder(torch.from_numpy(rows)[None], torch.ones(1, len(rows)))
    torch.testing.assert_close(session.learner.task_embedding, mean[0])


@pytest.mark.parametrize("asked", [True, False])
def test_the_task_is_inferred_anew_when_the_learner_asks_for_it(exported, meta_networks, monkeypatch, asked):
    add_episode = Finetuner.add_episode

    def asking(learner, rows):
        add_episode(learner, rows)
        return asked and learner.episodes == EPISODES

    monkeypatch.setattr(Finetuner, "add_episode", asking)
    (session, *_) = [s for s in run_sessions(exported, meta_networks) if any(s.successes[:K])]
    rows = select_context(np.concatenate(session.context[: EPISODES if asked else K]), LAYOUT, MAX_CONTEXT)
    with torch.no_grad():
        mean, _ = meta_networks.encoder(torch.from_numpy(rows)[None], torch.ones(1, len(rows)))
    torch.testing.assert_close(session.learner.task_embedding, mean[0])


def test_sessions_act_with_the_configured_temperature(exported, meta_networks, monkeypatch):
    seen, rollout = [], evaluate.rollout

    def spy(*arguments, **options):
        seen.append(arguments[4].temperature)
        return rollout(*arguments, **options)

    monkeypatch.setattr(evaluate, "rollout", spy)
    run_sessions(exported, meta_networks, episodes=1, finetuning=False, skill_temperature=0.25)
    assert seen == [0.25]


def test_results_are_written_by_session_and_episode(exported, meta_networks, tmp_path):
    sessions = run_sessions(exported, meta_networks, episodes=2, finetuning=False)
    success = write_results(sessions, tmp_path / "episodes.json")
    assert success.shape == (6, 2)
    content = json.loads((tmp_path / "episodes.json").read_text())
    assert [entry["task"] for entry in content] == [[1], [-1]] * 3
    assert [entry["successes"] for entry in content] == success.astype(bool).tolist()


def test_the_same_seeds_give_the_same_results(exported, meta_networks):
    once, again = (run_sessions(exported, meta_networks) for _ in range(2))
    assert [session.returns for session in once] == [session.returns for session in again]


def test_a_deterministic_evaluation_is_remembered_by_nobody(exported, meta_networks):
    plain = run_sessions(exported, meta_networks)
    watched = run_sessions(exported, meta_networks, deterministic_every=2)
    assert [sorted(session.deterministic_returns) for session in watched] == [[4, 6]] * 6  # none before the K = 3 conditioning episodes
    assert [session.returns for session in watched] == [session.returns for session in plain]
    assert not any(session.deterministic_returns for session in plain)
