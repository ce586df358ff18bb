import json

import numpy as np
import pytest
import torch

from tests.training.tiny import A, H, S, known_skills, tiny_config, world_config
from training.contract.errors import ConfigError
from training.data import Episode
from training.skill_extraction import SkillLearner, SkillWindows, build_skill_model, extract_skills, skill_share

LOW, HIGH = np.array([-1.0, -0.5], np.float32), np.array([1.0, 0.5], np.float32)


def numbered_episode(index, length):
    """Every observation and action tells its episode and step."""
    steps = np.arange(length + 1, dtype=np.float32)
    observations = np.stack([np.full(length + 1, index), steps, steps, steps], 1).astype(np.float32)
    return Episode(observations, np.stack([np.full(length, index), steps[:-1]], 1).astype(np.float32))


def steady_episodes(count=60, length=20, seed=0):
    """Each episode holds one of four actions and integrates it: a skill is that action, and a state tells it by its velocity."""
    rng = np.random.default_rng(seed)
    episodes = []
    for index in range(count):
        action = np.array([(0.8, 0.4), (0.8, -0.4), (-0.8, 0.4), (-0.8, -0.4)][index % 4], np.float32)
        actions = np.tile(action, (length, 1))
        position = rng.uniform(-3, 3, 2) + 0.1 * np.arange(length + 1)[:, None] * action
        velocity = np.tile(action, (length + 1, 1)) + 0.01 * rng.standard_normal((length + 1, 2))
        episodes.append(Episode(np.concatenate([position, velocity], 1).astype(np.float32), actions))
    return episodes


def test_an_entry_that_hardly_varies_is_taken_to_have_the_smallest_standard_deviation():
    config = tiny_config(features={"smallest_std": 0.25})
    windows = SkillWindows(steady_episodes(), H)
    std = build_skill_model(config, windows, LOW, HIGH).features.std
    found = windows.states.std(0)
    torch.testing.assert_close(std, found.clamp_min(0.25))
    still = SkillWindows([Episode(np.zeros((H + 1, S), np.float32), np.zeros((H, A), np.float32))], H)
    assert build_skill_model(config, still, LOW, HIGH).features.std.tolist() == [0.25] * S


def test_windows_never_cross_episodes_and_cover_every_start():
    windows = SkillWindows([numbered_episode(0, 9), numbered_episode(1, 3), numbered_episode(2, H), numbered_episode(3, 6)], H)
    assert len(windows.starts) == 5 + 0 + 1 + 2
    states, actions = windows.sample(400, torch.Generator().manual_seed(0))
    assert states.shape == (400, H, S)
    assert actions.shape == (400, H, A)
    assert torch.equal(states[..., 0], states[:, :1, 0].expand(-1, H))
    assert torch.equal(states[..., 1], states[:, :1, 1] + torch.arange(H))
    assert torch.equal(actions, states[..., :2])
    starts = {(int(state[0, 0]), int(state[0, 1])) for state in states}
    assert starts == {(0, step) for step in range(5)} | {(2, 0), (3, 0), (3, 1)}


def test_windows_of_an_episode_are_drawn_by_its_weight():
    episodes = [numbered_episode(0, 9), numbered_episode(1, 3), numbered_episode(2, 6), numbered_episode(3, 6)]
    states, _ = SkillWindows(episodes, H, np.array([1.0, 9.0, 0.0, 4.0], np.float32)).sample(6000, torch.Generator().manual_seed(0))
    drawn = np.bincount(states[:, 0, 0].int().numpy(), minlength=4) / 6000
    np.testing.assert_allclose(drawn, [5 / 13, 0, 0, 8 / 13], atol=0.02)  # 5 windows of weight 1, 2 of weight 4; the second is too short


def test_episodes_that_are_all_too_short_are_refused():
    with pytest.raises(ConfigError, match="no episode has the 5 steps of a skill; the longest has 4"):
        SkillWindows([numbered_episode(0, 4), numbered_episode(1, 2)], H)
    with pytest.raises(ConfigError, match="the longest has 0"):
        SkillWindows([], H)


def test_the_model_takes_its_normaliser_from_the_data():
    windows = SkillWindows(steady_episodes(), H)
    model = build_skill_model(tiny_config(), windows, LOW, HIGH)
    seen = model.features(windows.states)[:, :S]
    torch.testing.assert_close(seen.mean(0), torch.zeros(S), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(S), atol=1e-3, rtol=0)


def test_a_constant_entry_of_the_data_leaves_the_features_finite():
    episode = numbered_episode(0, 9)
    model = build_skill_model(tiny_config(), SkillWindows([episode], H), LOW, HIGH)
    assert torch.isfinite(model.features(torch.from_numpy(episode.observations))).all()


def test_the_prior_does_not_shape_the_skills():
    config, windows = tiny_config(), SkillWindows(steady_episodes(4), H)
    states, actions = windows.sample(8, torch.Generator().manual_seed(0))
    encoders, priors = [], []
    for prior_bias in (0.0, 3.0):
        torch.manual_seed(0)
        model = build_skill_model(config, windows, LOW, HIGH)
        model.prior.net[-1].bias.data.add_(prior_bias)
        before = model.prior.net[0].weight.detach().clone()
        SkillLearner(model, config.skills).update(states, actions, torch.Generator().manual_seed(1))
        encoders.append(torch.cat([value.flatten() for value in model.encoder.parameters()]))
        priors.append(not torch.equal(model.prior.net[0].weight, before))
    assert torch.equal(*encoders)
    assert all(priors)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def trained(request, tmp_path_factory):
    config = tiny_config(skills={"steps": 600, "learning_rate": 3e-3, "beta": 1e-3, "precision": request.param})
    run_dir = tmp_path_factory.mktemp("skills")
    return extract_skills(config, steady_episodes(), LOW, HIGH, run_dir), run_dir


def test_skills_reconstruct_the_actions_of_unseen_data(trained):
    model, run_dir = trained
    windows = SkillWindows(steady_episodes(seed=1), H)
    states, actions = windows.sample(500, torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, _ = model.encoder(states, actions)
        decoded = model.decoder(states, mean[:, None].expand(-1, H, -1))
    assert (decoded - actions).square().mean() < 0.02  # the actions' own variance is 0.4
    assert not model.training
    last = json.loads((run_dir / "skills.jsonl").read_text().splitlines()[-1])
    assert last["at"] == 600
    assert last["action_mse"] < 0.02


def test_the_prior_knows_which_skills_a_state_is_used_with(trained):
    model, _ = trained
    states, actions = SkillWindows(steady_episodes(seed=1), H).sample(500, torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = model.decoder(states[:, 0], model.prior(states[:, 0])[0])
    assert (torch.sign(decoded) == torch.sign(actions[:, 0])).float().mean() > 0.95


def test_how_much_of_what_is_done_is_the_skills(trained):
    def share(model):
        return skill_share(model, SkillWindows(steady_episodes(), H), torch.Generator().manual_seed(0))

    assert share(trained[0]) < 0.02  # a state tells by its velocity which way it goes on
    deciding = known_skills(world_config())
    assert share(deciding) == pytest.approx(1, abs=0.01)
    deciding.decoder.net[0].weight.data.zero_()
    assert share(deciding) == 0


def test_a_trained_stage_is_not_trained_again(trained, tmp_path):
    model, run_dir = trained
    config = tiny_config(skills={"steps": 600, "learning_rate": 3e-3, "beta": 1e-3})
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    before = (run_dir / "skills.safetensors").stat().st_mtime_ns
    again = extract_skills(config, steady_episodes(), LOW, HIGH, run_dir)
    assert (run_dir / "skills.safetensors").stat().st_mtime_ns == before
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


class Stopped(Exception):
    pass


def test_an_interrupted_stage_goes_on_as_if_it_never_had_been(tmp_path, monkeypatch):
    config, episodes = tiny_config(skills={"steps": 50}), steady_episodes(8)
    whole = extract_skills(config, episodes, LOW, HIGH, tmp_path / "whole")
    monkeypatch.setattr("training.skill_extraction.CHECKPOINT_STEPS", 20)
    update, calls = SkillLearner.update, []

    def counting(learner, *arguments):
        if len(calls) == 33:
            raise Stopped
        calls.append(learner.optimizer.param_groups[0]["lr"])
        return update(learner, *arguments)

    monkeypatch.setattr(SkillLearner, "update", counting)
    with pytest.raises(Stopped):
        extract_skills(config, episodes, LOW, HIGH, tmp_path)
    first_rates, calls[:] = list(calls), []
    torch.manual_seed(99)
    parted = extract_skills(config, episodes, LOW, HIGH, tmp_path)
    assert len(calls) == 30  # from step 20, where the checkpoint stands
    assert calls[:13] == first_rates[20:]  # the learning rate goes on where it was
    assert json.loads((tmp_path / "skills.jsonl").read_text().splitlines()[-1])["at"] == 50
    assert all(map(torch.equal, whole.parameters(), parted.parameters()))
