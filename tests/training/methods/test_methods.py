"""Each method, end to end in a world of two tasks, and how it differs from Skillet's."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.training.tiny import LAYOUT, TINY_SPEC, A, E, known_skills, world_config
from tests.training.worlds import TwoSidedWorld
from training.config import load_config
from training.contract.errors import ConfigError
from training.methods.catalogue import METHODS
from training.methods.meta_stage import starting_point
from training.methods.protocol import MethodProtocol
from training.methods.setting import Setting
from training.methods.start import Start
from training.methods.unit import Unit, kept_units, run_unit
from training.relabelling import Relabeller
from training.session_store import load_sessions

TASKS, K, EPISODES = [(1,), (-1,)], 3, 6


def make_setting(**sections):
    meta = {"updates": 2, "updates_per_epoch": 1, "checkpoint_epochs": 1} | sections.pop("meta", {})
    evaluate = {"conditioning_episodes": K, "deterministic_every": 2} | sections.pop("evaluate", {})
    config = world_config(meta=meta, evaluate=evaluate, **sections)
    start = Start(known_skills(config), "known skills")
    world = TwoSidedWorld()
    return Setting(config, start, TINY_SPEC, world, TwoSidedWorld(), [(1,), (-1,), (1,)], TASKS)


@pytest.fixture
def setting():
    return make_setting()


def short(name):
    """A method whose protocol has as few conditioning episodes as the setting."""
    method = METHODS[name]
    changes = {section: dict(values) for section, values in method.changes.items()}
    if "evaluate" in changes:
        changes["evaluate"]["conditioning_episodes"] = K
    if "finetuning" in changes:
        changes["finetuning"] |= {"batch": 8, "buffer": 60}
    return dataclasses.replace(method, changes=changes)


def protocol_of(method, setting, tmp_path):
    config = setting.configure(method, 0)
    start = starting_point(method, setting, 0, tmp_path / "meta")
    return MethodProtocol(method, config, start.networks, start.coefficient, setting.spec_of(method), setting.simulator, start.belief)


def played(method, setting, tmp_path, episodes=EPISODES):
    protocol = protocol_of(method, setting, tmp_path)
    sessions = protocol.begin(TASKS, [0])
    for episode in range(episodes):
        protocol.advance(sessions, episode)
    return protocol, sessions


def content(unit, out):
    return json.loads(unit.results(out).read_text())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_goes_on_as_if_it_had_not_been_interrupted(name, setting, tmp_path, monkeypatch):
    unit = Unit(short(name), 4, 1)
    run_unit(unit, setting, EPISODES, tmp_path / "whole")
    run_unit(unit, setting, EPISODES - 2, tmp_path / "parts")
    assert len(content(unit, tmp_path / "parts")["sessions"][0]["returns"]) == EPISODES - 2
    run_unit(unit, setting, EPISODES, tmp_path / "parts")
    whole, parts = (content(unit, tmp_path / name) for name in ("whole", "parts"))
    assert whole["sessions"] == parts["sessions"]
    assert [len(session["returns"]) for session in whole["sessions"]] == [EPISODES] * len(TASKS)
    assert {"4", "6"} <= set(whole["sessions"][0]["deterministic_returns"])
    for target in (whole["cost"]["target"], parts["cost"]["target"]):
        assert target["environment_steps"] > 0
        assert (target["updates"] > 0) == unit.method.finetunes
    assert whole["cost"]["target"]["updates"] == parts["cost"]["target"]["updates"]
    assert (whole["cost"]["meta"]["updates"] > 0) == (unit.method.meta is not None)
    monkeypatch.setattr(MethodProtocol, "advance", lambda *_: pytest.fail("ran a finished unit again"))
    run_unit(unit, setting, EPISODES, tmp_path / "whole")


def test_a_killed_unit_goes_on_from_its_last_checkpoint(setting, tmp_path, monkeypatch):
    unit = Unit(short("spirl"), 0, 0)
    run_unit(unit, setting, 9, tmp_path / "whole")
    advance = MethodProtocol.advance

    def killed(self, sessions, episode):
        if episode == 7:
            raise KeyboardInterrupt
        return advance(self, sessions, episode)

    monkeypatch.setattr(MethodProtocol, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        run_unit(unit, setting, 9, tmp_path / "killed")
    monkeypatch.setattr(MethodProtocol, "advance", advance)
    assert len(content(unit, tmp_path / "killed")["sessions"][0]["returns"]) == 5
    run_unit(unit, setting, 9, tmp_path / "killed")
    assert content(unit, tmp_path / "killed")["sessions"] == content(unit, tmp_path / "whole")["sessions"]


def test_results_of_another_configuration_are_not_mixed_in(setting, tmp_path):
    unit = Unit(short("spirl"), 0, 0)
    run_unit(unit, setting, 1, tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        run_unit(unit, make_setting(finetuning={"polyak": 0.5}), 2, tmp_path)
    unit.results(tmp_path).unlink()  # as the message says
    run_unit(unit, make_setting(finetuning={"polyak": 0.5}), 2, tmp_path)
    run_unit(unit, make_setting(finetuning={"polyak": 0.5}), 2, tmp_path / "afresh")
    assert content(unit, tmp_path)["sessions"] == content(unit, tmp_path / "afresh")["sessions"]


def test_simpl_conditions_without_learning_from_it_and_makes_one_step_a_transition(setting, tmp_path):
    method = short("simpl")
    _, sessions = played(method, setting, tmp_path, K)
    for session in sessions:
        assert (len(session.learner.replay), session.learner.updates) == (0, 0)
    _, sessions = played(method, setting, tmp_path)
    for session in sessions:
        sizes = np.cumsum([len(rows) for rows in session.context[K:]])
        assert len(session.learner.replay) == sizes[-1]
        full = int(np.argmax(sizes >= 8))  # the first episode with which the replay holds a batch
        assert session.learner.updates == sum(len(rows) for rows in session.context[K + full :])


def test_simpl_adds_nothing_of_skillets_to_its_losses(setting):
    config = setting.configure(METHODS["simpl"], 0)
    meta = config.meta
    assert (meta.relabelled_episodes, meta.return_bound, meta.success_share, meta.demonstrations) == (0, False, 0, 0)
    assert (config.finetuning.return_bound, config.finetuning.success_share, config.finetuning.imitation) == (False, 0, 0)
    assert (config.evaluate.exploration, config.evaluate.conditioning_episodes) == ("prior", 20)
    aided = setting.configure(METHODS["simpl-aided"], 0)
    assert (aided.meta.return_bound, aided.meta.success_share, aided.meta.relabelled_episodes) == (True, 1 / 3, 0)
    assert aided.finetuning == config.finetuning


def test_simpl_has_its_published_coefficients_for_each_domain(setting):
    for domain, target in (("maze", 0.5), ("kitchen", 0.1)):
        named = setting.config.model_copy(update={"domain": setting.config.domain.model_copy(update={"name": domain})})
        assert METHODS["simpl"].configure(named).meta.policy_prior_target == target


def test_only_skillet_keeps_exploring_until_the_first_reward(tmp_path):
    setting = make_setting()
    setting.simulator.end = 50.0
    _, ours = played(short("skillet"), setting, tmp_path)
    _, theirs = played(short("simpl"), setting, tmp_path)
    assert all(session.learner is None for session in ours)
    assert all(session.learner is not None for session in theirs)


def test_spirl_starts_from_the_skill_prior_and_learns_from_its_first_episode(setting, tmp_path):
    protocol, sessions = played(short("spirl"), setting, tmp_path, 1)
    states = torch.randn(5, 4)
    mean, _, prior_mean, _ = protocol.networks.policy(states, torch.zeros(5, E))
    torch.testing.assert_close(mean, prior_mean, atol=0.1, rtol=0)
    for session in sessions:
        assert session.learner.updates == setting.config.finetuning.warm_start_updates
        assert not session.learner.task_embedding.any()
    assert setting.configure(METHODS["spirl"], 0).finetuning == setting.config.finetuning


def test_spirl_may_explore_as_skillet_until_its_first_reward_and_learns_from_there(tmp_path):
    belief = {"particles": 6, "episodes": 8, "updates": 3, "batch": 16, "hidden": (8,), "dynamics_updates": 3, "dynamics_hidden": (8,)}
    setting = make_setting(belief=belief, evaluate={"exploration": "novelty", "conditioning_episodes": K})
    protocol, sessions = played(METHODS["spirl-novelty"], setting, tmp_path, 6)
    skillet = starting_point(METHODS["skillet"], setting, 0, tmp_path / "meta")
    np.testing.assert_array_equal(protocol.belief.particles, skillet.belief.particles)
    states = torch.randn(5, 4)
    mean, _, prior_mean, _ = protocol.networks.policy(states, torch.zeros(5, E))
    torch.testing.assert_close(mean, prior_mean, atol=0.1, rtol=0)
    for session in sessions:
        first = next((number for number, earned in enumerate(session.returns) if earned), None)
        learned = 0 if first is None else setting.config.finetuning.warm_start_updates
        learned += 0 if first is None else setting.config.finetuning.updates_per_episode * (5 - first)
        assert (session.learner.updates if session.learner else 0) == learned
        assert session.learner is None or not session.learner.task_embedding.any()
    assert any(session.learner for session in sessions)


def test_the_multi_task_policy_is_blind_to_the_task_and_still_learns(setting, tmp_path):
    start = starting_point(METHODS["mtrl"], setting, 0, tmp_path)
    states, skills = torch.randn(6, 4), torch.randn(6, LAYOUT.skill_dim)
    one, other = torch.randn(6, E), torch.randn(6, E)
    for network, inputs in ((start.networks.policy, (states,)), (start.networks.critic, (states, skills))):
        left, right = network(*inputs, one), network(*inputs, other)
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a, b)
    assert not start.networks.policy.net[0].weight[:, -E:].any()
    assert not start.networks.critic.net.layers[0].weight[:, -E:].any()
    untrained = starting_point(METHODS["mtrl"], make_setting(meta={"updates": 1, "learning_rate": 1e-9}), 0, tmp_path / "untrained")
    assert not torch.allclose(start.networks.policy.net[0].weight, untrained.networks.policy.net[0].weight)


def test_pearl_acts_with_primitive_actions_under_a_standard_normal_prior(setting, tmp_path):
    protocol, sessions = played(short("pearl"), setting, tmp_path, K)
    assert (protocol.spec.skill_horizon, protocol.spec.skill_dim) == (1, A)
    for session in sessions:
        assert [len(rows) for rows in session.context] == session.steps
        assert session.learner is None
    states = torch.randn(5, 4)
    mean, std = protocol.networks.skills.prior(states)
    assert torch.equal(mean, torch.zeros(5, A))
    assert torch.equal(std, torch.ones(5, A))
    raw = torch.randn(5, A)
    torch.testing.assert_close(protocol.networks.skills.decoder(states, raw), torch.tanh(raw) * torch.tensor(TINY_SPEC.action.high))
    discount = setting.config.meta.discount ** (1 / setting.config.skills.horizon)
    assert protocol.config.meta.discount == protocol.config.finetuning.discount == pytest.approx(discount)


def test_primitive_actions_keep_the_entropy_of_soft_actor_critic(setting):
    configured = setting.configure(METHODS["sac"], 0)
    target = A * (1 + np.log(2))  # from uniform between the limits, A log 2, to an entropy of -A
    assert configured.finetuning.kl_target == configured.meta.policy_posterior_target == pytest.approx(target)
    assert configured.finetuning.kl_clip == pytest.approx(4 * target)
    assert configured.finetuning.coefficient_may_fall
    assert configured.meta.coefficient_may_fall


def test_pearl_and_pearl_ft_share_one_meta_training(setting, tmp_path, monkeypatch):
    first = starting_point(METHODS["pearl"], setting, 0, tmp_path)
    monkeypatch.setattr(METHODS["pearl"].trainer, "collect", lambda _: pytest.fail("trained again"))
    second = starting_point(METHODS["pearl-ft"], setting, 0, tmp_path)
    for left, right in zip(first.networks.policy.parameters(), second.networks.policy.parameters(), strict=True):
        assert torch.equal(left, right)


def test_skillet_may_start_from_networks_that_are_there(setting, tmp_path, meta_networks):
    given = dataclasses.replace(setting, start=Start(setting.start.skills, "given", 7, meta_networks, 0.02))
    start = starting_point(METHODS["skillet"], given, 7, tmp_path)
    assert (start.networks, start.coefficient, start.cost) == (meta_networks, 0.02, None)
    assert starting_point(METHODS["skillet"], given, 8, tmp_path).networks is not meta_networks


def test_meta_training_on_other_skills_is_not_gone_on_from(setting, tmp_path):
    starting_point(METHODS["simpl"], setting, 0, tmp_path)
    other = make_setting()
    with torch.no_grad():
        next(other.start.skills.prior.parameters()).add_(1.0)
    with pytest.raises(ConfigError, match="meta-trained on other skills than these"):
        starting_point(METHODS["simpl"], other, 0, tmp_path)


def test_results_of_other_networks_are_not_gone_on_from(setting, tmp_path, meta_networks):
    start = dataclasses.replace(setting.start, meta_seed=0, networks=meta_networks, coefficient=1e-3, networks_digest="one")
    unit = Unit(METHODS["skillet"], 0, 0)
    run_unit(unit, dataclasses.replace(setting, start=start), 1, tmp_path)
    with pytest.raises(ConfigError, match="from another start"):
        run_unit(unit, dataclasses.replace(setting, start=dataclasses.replace(start, networks_digest="two")), 2, tmp_path)


def test_results_with_a_belief_of_another_meta_training_are_not_gone_on_from(tmp_path):
    unit, believing = Unit(METHODS["spirl-novelty"], 0, 0), {"particles": 5, "episodes": 4, "updates": 2, "batch": 8, "hidden": (4,)}
    run_unit(unit, make_setting(belief=believing), 1, tmp_path)
    with pytest.raises(ConfigError, match="with another configuration"):
        run_unit(unit, make_setting(belief=believing, meta={"updates": 3}), 2, tmp_path)


def test_a_belief_of_other_settings_is_learned_anew(tmp_path):
    setting = make_setting(belief={"particles": 5, "episodes": 4, "updates": 2, "batch": 8, "hidden": (4,)})
    config = setting.config.model_copy(update={"belief": setting.config.belief.model_copy(update={"widening": 9.0})})
    first, again, other = (
        starting_point(METHODS["skillet"], each, 0, tmp_path).belief.particles
        for each in (setting, setting, dataclasses.replace(setting, config=config))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("damage", ["[]", "null", '{"sessions": []}', '{"fingerprint": "'])
def test_damaged_results_are_named(setting, tmp_path, damage):
    unit = Unit(METHODS["spirl"], 0, 0)
    run_unit(unit, setting, 1, tmp_path)
    unit.results(tmp_path).write_text(damage)
    with pytest.raises(ConfigError, match=f"{unit.name}.json is cut or damaged: delete it"):
        run_unit(unit, setting, 2, tmp_path)
    assert kept_units(METHODS, setting, tmp_path) == ([], [unit.results(tmp_path)])


def test_spirl_begins_with_coefficients_that_hold_an_untrained_policy_near_the_prior(setting):
    config = setting.configure(METHODS["spirl"], 0)
    for name, coefficient, clip, target in (("maze", 0.05, 10, 1), ("kitchen", 1.0, 10, 5)):
        named = config.model_copy(update={"domain": config.domain.model_copy(update={"name": name})})
        spirl = METHODS["spirl"].configure(named)
        assert spirl.meta.policy_posterior_coefficient == coefficient
        assert (spirl.finetuning.kl_clip, spirl.finetuning.kl_target) == (clip, target)
        assert spirl.finetuning.coefficient_may_fall


def test_demonstrations_without_a_skill_encoder_are_refused(tmp_path):
    setting = make_setting(meta={"demonstrations": 2})
    bundled = dataclasses.replace(setting, start=dataclasses.replace(setting.start, has_skill_encoder=False))
    with pytest.raises(ConfigError, match="give --run in place of --bundle"):
        starting_point(METHODS["skillet"], bundled, 0, tmp_path)
    starting_point(METHODS["mtrl"], bundled, 0, tmp_path)  # which has none


def test_baselines_are_not_relabelled(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(Relabeller, "rewarded", lambda *_: pytest.fail("relabelled"))
    for name in ("simpl", "mtrl", "pearl"):
        starting_point(METHODS[name], setting, 0, tmp_path)


@pytest.mark.parametrize("name", ["simpl", "simpl-aided", "mtrl", "pearl", "pearl-ft"])
def test_what_knows_other_tasks_rewards_is_left_out_of_the_baselines(name):
    meta = METHODS[name].configure(load_config("kitchen")).meta
    assert load_config("kitchen").meta.context_pool > 0
    assert (meta.context_pool, meta.relabelled_episodes, meta.demonstrations) == (0, 0, 0)


@pytest.mark.parametrize(("exploration", "remembered"), [("belief", "following"), ("novelty", "places")])
def test_only_skillet_explores_so_and_goes_on_with_it_after_an_interruption(tmp_path, exploration, remembered):
    belief = {"particles": 6, "episodes": 8, "updates": 3, "batch": 16, "hidden": (8,), "dynamics_updates": 3, "dynamics_hidden": (8,)}
    setting = make_setting(belief=belief, evaluate={"exploration": exploration, "conditioning_episodes": EPISODES})
    others = {
        name: setting.configure(method, 0).evaluate.exploration for name, method in METHODS.items() if not method.believes(setting.config)
    }
    assert others.pop("spirl-novelty") == exploration
    assert exploration not in others.values()
    unit = Unit(METHODS["skillet"], 0, 0)
    run_unit(unit, setting, EPISODES, tmp_path / "whole")
    run_unit(unit, setting, EPISODES - 2, tmp_path / "parts")
    protocol = protocol_of(unit.method, setting, tmp_path / "parts")
    assert protocol.belief is not None
    kept = load_sessions(tmp_path / "parts/checkpoints" / unit.name, protocol, TASKS, [0])
    assert all(getattr(session, remembered) is not None for session in kept)
    run_unit(unit, setting, EPISODES, tmp_path / "parts")
    assert content(unit, tmp_path / "parts")["sessions"] == content(unit, tmp_path / "whole")["sessions"]


def test_baselines_that_are_aided_draw_skills_as_skillet_does():
    kitchen = load_config("kitchen")
    drawn = {name: method.configure(kitchen).evaluate.skill_temperature for name, method in METHODS.items()}
    aided = {"skillet", "simpl-aided", "spirl", "spirl-novelty", "mtrl"}
    assert drawn == {name: kitchen.evaluate.skill_temperature if name in aided else 1.0 for name in METHODS}
    assert kitchen.evaluate.skill_temperature != 1.0
