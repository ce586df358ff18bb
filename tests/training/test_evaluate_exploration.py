"""How sessions of the target-task protocol explore."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.target_sessions import EPISODES, SEEDS, TASKS, K, run_sessions, watch_choices
from tests.training.tiny import LAYOUT, MAX_CONTEXT, TINY_SPEC, E, world_config
from tests.training.worlds import CountingWorld, TwoSidedWorld
from training import evaluate
from training.contract.belief import Belief
from training.contract.context import select_context
from training.contract.exploration import DETOUR_SKILLS, drawn_embedding, skill_noise
from training.contract.novelty import GRACE, PATIENCE, Novelty
from training.evaluate import TargetProtocol

PARTICLES = np.array([[3.0, 0.0], [-3.0, 0.0]], np.float32)
BELIEF = Belief(PARTICLES, lambda states, embeddings: np.where(states[:, 0] * embeddings[:, 0] > 0.1, np.float32(0.9), np.float32(0.01)))


def test_by_a_belief_a_session_leaves_the_side_that_it_has_seen_in_vain(exported, meta_networks):
    options = {"finetuning": False, "belief": BELIEF, "episodes": 1, "exploration": "belief"}
    sessions = run_sessions(exported, meta_networks, TwoSidedWorld(end=50.0), **options)
    for session in sessions:
        places = session.context[0][1:, 0]  # where skills were chosen, after the start in the middle
        seen = [bool((places * side > 0.1).any()) for side in (1, -1)]
        np.testing.assert_array_equal(session.following.plausibility < 0.5, seen)
    assert any((session.following.plausibility < 0.5).any() for session in sessions)


def test_by_a_belief_the_mean_acts_first_once_there_was_a_reward(exported, meta_networks, acted):
    sessions = run_sessions(exported, meta_networks, finetuning=False, belief=BELIEF, exploration="belief")
    index, first = next((index, session.successes.index(True)) for index, session in enumerate(sessions) if any(session.successes[: K - 1]))
    rows = select_context(np.concatenate(sessions[index].context[: first + 1]), LAYOUT, MAX_CONTEXT)
    with torch.no_grad():
        mean, _ = meta_networks.encoder(torch.from_numpy(rows)[None], torch.ones(1, len(rows)))
    torch.testing.assert_close(acted[first + 1][0][index], mean[0])
    assert acted[first][0][index].tolist() in PARTICLES.tolist()


def stepping(states, noise):
    """What `known_skills` do in `TwoSidedWorld`, roughly: the first entry moves the place."""
    after = states.copy()
    after[:, 0] += np.tanh(noise[:, 0])
    return noise, after


BY_NOVELTY = replace(BELIEF, novelty=Novelty(np.array([[4.0, 0, 0, 0]], np.float32), stepping))


def test_by_novelty_sessions_plan_until_a_reward_came(exported, meta_networks, monkeypatch):
    planned = []

    def watch(choice, acting, policies, skill_index, states, active):
        planned.append((skill_index, states.copy(), dict(choice.planned), set(active.tolist())))
        return choice

    watch_choices(monkeypatch, watch)
    config = {"conditioning_episodes": 2, "episodes": 4, "exploration": "novelty"}
    sessions = run_sessions(exported, meta_networks, finetuning=False, belief=BY_NOVELTY, **config)
    novelty, episode = BY_NOVELTY.novelty, -1
    places = [novelty.begin()] * len(sessions)
    for skill_index, states, skills, active in planned:
        episode += skill_index == 0
        for index, session in enumerate(sessions):
            still = episode == 0 or not any(session.returns[:episode])
            assert (index in skills) == (still and index in active), "planned without need, or not although it had to"
            if index in skills:
                expected, places[index] = novelty.plan(
                    places[index], states[index], seed=session.seed, episode=episode, skill_index=skill_index, skill_dim=3
                )
                np.testing.assert_array_equal(skills[index], expected)
    for index, session in enumerate(sessions):
        seen = places[index].seen if not any(session.returns[:-1]) else []
        assert session.places.seen.tolist() == np.array(seen).tolist(), "once rewarded, it does not matter any more"
    rows = sessions[0].context[0]
    np.testing.assert_array_equal(rows[0, LAYOUT.skill], planned[0][2][0])


class FarAndWide(TwoSidedWorld):
    """Episodes of forty skills, of which an end is a few away: long enough to be overdue."""

    def __init__(self):
        super().__init__(episode_steps=200)


def test_an_overdue_episode_goes_back_and_the_next_does_so_at_once(exported, meta_networks, monkeypatch):
    """A policy that always goes the other way, after a first episode that a plan took to the end."""

    def watch(choice, acting, policies, skill_index, states, active):
        if session.returns and choice.planned:
            return choice
        return replace(choice, planned={0: np.array([-5.0 if session.returns else 1.0, 0, 0], np.float32)})

    watch_choices(monkeypatch, watch)
    options = {"conditioning_episodes": 9, "episodes": 4, "exploration": "novelty"}
    config = world_config(evaluate=options, belief={"particles": 2, "dynamics_updates": 1})
    protocol = TargetProtocol(config, meta_networks, TINY_SPEC, FarAndWide(), None, BY_NOVELTY)
    (session,) = protocol.begin([(1,)], [0])
    began = []
    for episode in range(4):
        protocol.advance([session], episode)
        began.append(session.beyond_from)
    way = np.concatenate([session.context[0][:, LAYOUT.state], session.context[0][-1:, LAYOUT.next_state]])
    limit = PATIENCE * len(BY_NOVELTY.novelty.with_route([way]).route) + GRACE
    assert began == [-1, int(np.ceil(limit)), 0, int(np.ceil(limit))]
    assert session.returns[2] == 1.0, "from the beginning it goes straight back"


class PaysFirst(CountingWorld):
    """Pays 1 for the first step of an episode, and nothing for the others; no task ends."""

    def reset(self, tasks, rng):
        return super().reset([1000] * len(tasks), rng)

    def step(self, actions, active):
        states, _, ended = super().step(actions, active)
        return states, (self.counts[active] == 1).astype(np.float32), ended


@pytest.mark.parametrize(
    ("exploration", "belief"), [("thompson", BELIEF), ("alternating", BELIEF), ("thompson", None), ("switching", BELIEF)]
)
def test_with_nothing_left_to_gain_a_session_explores_with_particles_and_the_policy_of_the_bundle(
    exported, meta_networks, monkeypatch, exploration, belief
):
    chosen = []

    def watch(choice, acting, policies, skill_index, states, active):
        chosen.append((skill_index, choice.by_base.tolist(), choice.embeddings.tolist()))
        assert acting.base is meta_networks.policy
        return choice

    watch_choices(monkeypatch, watch)
    world = PaysFirst(episode_steps=13)
    (session, *_) = run_sessions(exported, meta_networks, world, belief=belief, exploration=exploration)
    assert session.returns == [1.0] * EPISODES
    skills = len(chosen) // EPISODES
    assert skills == 3
    for number, (skill_index, by_base, embeddings) in enumerate(chosen):
        explores = exploration != "switching" and belief is not None and number >= skills and skill_index > 0
        assert by_base == [explores] * len(by_base)
        if explores:
            assert all(np.float32(embedding).tolist() in PARTICLES.tolist() for embedding in embeddings)


class PaysTwice(CountingWorld):
    """Pays 1 for the first step of an episode and 1 for its last; no task ends."""

    def reset(self, tasks, rng):
        return super().reset([1000] * len(tasks), rng)

    def step(self, actions, active):
        states, _, ended = super().step(actions, active)
        return states, np.isin(self.counts[active], (1, self.episode_steps)).astype(np.float32), ended


@pytest.mark.parametrize("detours", [True, False])
def test_a_detour_takes_a_few_skills_of_the_skill_prior_after_what_it_waits_for_is_earned(exported, meta_networks, monkeypatch, detours):
    after = {(1, 4): 0.5, (2, 6): 1.5}  # by seed and episode; the second is earned with the last step, so it takes none
    monkeypatch.setattr(evaluate, "detour_after", lambda exploration, *, seed, episode, **known: after.get((seed, episode)))
    planned, skills = [], DETOUR_SKILLS + 3

    def watch(choice, acting, policies, skill_index, states, active):
        number = len(planned) // skills
        assert sorted(choice.planned) == ([2, 3] if detours and number == 4 and 1 <= skill_index <= DETOUR_SKILLS else [])
        for index, skill in choice.planned.items():
            mean, std = meta_networks.skills.prior(torch.from_numpy(states[index : index + 1]))
            noise = skill_noise(1, number, skill_index * TINY_SPEC.skill_horizon, TINY_SPEC.skill_dim)
            np.testing.assert_allclose(skill, (mean[0] + std[0] * torch.from_numpy(noise)).detach().numpy(), rtol=1e-5)
        planned.append(len(choice.planned))
        return choice

    watch_choices(monkeypatch, watch)
    world = PaysTwice(episode_steps=skills * TINY_SPEC.skill_horizon)
    sessions = run_sessions(exported, meta_networks, world, belief=BELIEF, exploration="thompson", detours=detours)
    assert {tuple(session.returns) for session in sessions} == {(2.0,) * EPISODES}
    assert sum(planned) == (2 * DETOUR_SKILLS if detours else 0)


@pytest.mark.parametrize("exploration", ["thompson", "alternating"])
def test_before_the_first_reward_thompson_sampling_draws_particles(exported, meta_networks, acted, exploration):
    run_sessions(exported, meta_networks, TwoSidedWorld(end=50.0), finetuning=False, belief=BELIEF, exploration=exploration, episodes=K)
    drawn = [[tuple(embedding) for embedding in embeddings.tolist()] for embeddings, _, _ in acted]
    particles, sessions = {tuple(particle) for particle in PARTICLES.tolist()}, [(seed, task) for seed in SEEDS for task in TASKS]
    for episode, embeddings in enumerate(drawn):
        if episode % 2 or exploration == "thompson":
            assert set(embeddings) <= particles
        else:
            assert embeddings == [tuple(drawn_embedding(exploration, seed, episode, 0, E).tolist()) for seed, _ in sessions]
    assert {embedding for embeddings in drawn[1::2] for embedding in embeddings} == particles


def test_conditioning_episodes_draw_their_embeddings_as_the_service_does(exported, meta_networks, acted):
    sessions = run_sessions(exported, meta_networks, episodes=K, exploration="prior")
    for episode, (embeddings, plain, _) in enumerate(acted):
        expected = [drawn_embedding("prior", session.seed, episode, 0, E) for session in sessions]
        np.testing.assert_array_equal(embeddings.numpy(), np.stack(expected))
        assert not any(plain)


@pytest.mark.parametrize("exploration", ["thompson", "alternating"])
def test_rewarded_thompson_sampling_takes_the_posterior_alternating_in_turn_with_the_prior(exported, meta_networks, acted, exploration):
    sessions = run_sessions(exported, meta_networks, exploration=exploration, finetuning=False, conditioning_episodes=6, episodes=6)
    asked = 0
    for index, session in enumerate(sessions):
        for episode, (embeddings, _, _) in enumerate(acted):
            drawn = torch.from_numpy(drawn_embedding("prior", session.seed, episode, 0, E))
            if (episode % 2 or exploration == "thompson") and any(session.successes[:episode]):
                rows = select_context(np.concatenate(session.context[:episode]), LAYOUT, MAX_CONTEXT)
                with torch.no_grad():
                    mean, scale = meta_networks.encoder(torch.from_numpy(rows)[None], torch.ones(1, len(rows)))
                drawn, asked = mean[0] + scale[0] * drawn, asked + 1
            torch.testing.assert_close(embeddings[index], drawn)
    assert asked > 0
