import itertools

import mujoco
import numpy as np
import pytest

from training.collect.kitchen import Demonstration, Demonstrator, KitchenCollectConfig, collect_kitchen, sequences, success_table
from training.collect.kitchen_arm import FOLLOWED, MAX_STEP, OPEN, SITE, STIFFNESS, Arm, Pose, Posture, facing, turned
from training.collect.kitchen_recipes import RECIPES
from training.config import load_config
from training.contract.errors import ConfigError
from training.data import Episode, load_episodes
from training.domains import open_domain

ENV_ID = "clients.simulator:skillet/Kitchen-v0"
HOME = np.array([0.15, -1.75, 1.84, -2.48, 0.26, 0.71, 1.6])


@pytest.fixture(scope="module")
def demonstrator():
    return Demonstrator(KitchenCollectConfig(action_noise=(0.05,)), ENV_ID)


@pytest.fixture(scope="module")
def arm():
    return Arm()


def hand(arm, joints):
    data = mujoco.MjData(arm.model)
    data.qpos[:] = joints
    mujoco.mj_kinematics(arm.model, data)
    return data.site(SITE).xpos.copy(), data.site(SITE).xmat.reshape(3, 3).copy()


def test_following_the_actions_brings_the_hand_to_a_pose_within_the_joint_limits(arm):
    joints, rotation = HOME.copy(), facing((0.06, 0.99, 0.12))
    wanted = np.array([-0.256, 0.51, 2.226])
    for _ in range(40):
        action = arm.act(Pose(wanted, rotation), joints, np.zeros(7))
        assert np.abs(action[:7]).max() <= 1 + 1e-9
        joints = joints + FOLLOWED * 0.16 * action[:7]
        assert (joints >= arm.model.jnt_range[:, 0] - 1e-6).all()
        assert (joints <= arm.model.jnt_range[:, 1] + 1e-6).all()
    position, turned_to = hand(arm, joints)
    np.testing.assert_allclose(position, wanted, atol=5e-3)
    np.testing.assert_allclose(turned_to, rotation, atol=0.05)


def test_a_posture_far_away_is_approached_on_a_straight_line_at_the_joints_top_speed(arm):
    target = HOME + np.array([0.5, 0, 0, 0.1, 0, 0, 0])
    action = arm.act(Posture(target), HOME, np.zeros(7))
    step = FOLLOWED * 0.16 * action[:7]
    assert step[0] == pytest.approx(MAX_STEP[0])
    assert step[3] == pytest.approx(0.2 * step[0])
    assert tuple(action[7:]) == OPEN


def test_an_action_holds_the_arm_against_gravity(arm):
    bias = np.array([0.0, 8.7, 0.0, 0.0, 0.0, 1.2, 0.0])
    action = arm.act(Posture(HOME), HOME, bias)
    np.testing.assert_allclose(action[:7] * 0.16 * STIFFNESS, bias, atol=1e-9)


def test_a_facing_hand_points_along_its_approach_and_opens_to_the_right():
    rotation = facing((0.2, 0.9, 0.3))
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation[:, 2], np.array([0.2, 0.9, 0.3]) / np.linalg.norm([0.2, 0.9, 0.3]))
    assert rotation[0, 1] > 0.9
    np.testing.assert_allclose(turned(2, np.pi / 2, np.eye(3))[:, 0], [0, 1, 0], atol=1e-12)


def test_sequences_cover_every_pair_and_hold_no_test_task():
    domain = open_domain(load_config("kitchen"))
    tasks = sequences(domain.train_tasks, domain.test_tasks)
    assert len(tasks) == len(set(tasks)) >= 24
    assert not set(tasks) & set(domain.test_tasks)
    assert set(domain.train_tasks) <= set(tasks)
    assert {pair for task in tasks for pair in itertools.pairwise(task)} == set(itertools.permutations(RECIPES, 2))


@pytest.mark.parametrize("subtask", list(RECIPES))
def test_each_recipe_does_its_subtask_from_home_and_no_other(demonstrator, subtask):
    made = demonstrator.demonstrate((subtask,), (0, 7))
    assert made.finished == (True,)
    assert demonstrator.done(made.episode.observations[-1]) == {subtask}
    assert len(made.episode) < 150


def test_an_episode_follows_from_its_seed_alone(demonstrator):
    once, again, other = (demonstrator.demonstrate(("light switch",), seed) for seed in ((0, 3), (0, 3), (0, 4)))
    np.testing.assert_array_equal(once.episode.observations, again.episode.observations)
    np.testing.assert_array_equal(once.episode.actions, again.episode.actions)
    assert not np.array_equal(once.episode.actions[:9], other.episode.actions[:9])


def test_interrupted_collection_goes_on_and_gives_the_episodes_of_one_in_one_go(tmp_path):
    tasks = [("light switch",), ("kettle",)]
    config = KitchenCollectConfig(episodes=2, max_steps=12, workers=1)
    whole = collect_kitchen(config, ENV_ID, tasks, tmp_path)
    files = sorted(tmp_path.glob("collect/*/*.npz"))
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    resumed = collect_kitchen(config, ENV_ID, tasks, tmp_path)
    assert files[0].stat().st_mtime_ns == kept
    for before, after in zip(whole, resumed, strict=True):
        assert before.task == after.task
        np.testing.assert_array_equal(before.episode.observations, after.episode.observations)
        assert before.episode.observations.shape == (13, 30)
    assert not list(tmp_path.glob("collect/*/*.part"))


def test_the_table_counts_subtasks_that_had_their_turn_and_the_score_of_each_sequence():
    episode = Episode(np.zeros((3, 30), np.float32), np.zeros((2, 9), np.float32))
    task = ("microwave", "kettle", "light switch", "hinge cabinet")
    made = [Demonstration(episode, task, (True,) * n + (False,) * (4 - n), noise, 0.8) for n, noise in ((4, 0.05), (2, 0.15))]
    lines = success_table(made).splitlines()
    assert "| microwave | 2 | 2 |" in lines
    assert "| light switch | 2 | 1 |" in lines
    assert "| hinge cabinet | 1 | 1 |" in lines
    assert "| bottom burner | 0 | 0 |" in lines
    assert "| microwave, kettle, light switch, hinge cabinet | 2 | 3.00 | 1 |" in lines
    by_noise = lines.index("| action noise | correlation | episodes | mean score |") + 2
    assert lines[by_noise : by_noise + 2] == ["| 0.05 | 0.8 | 1 | 4.00 |", "| 0.15 | 0.8 | 1 | 2.00 |"]


def test_the_recorded_actions_are_those_intended_unless_the_executed_ones_are_asked_for():
    options = {"action_noise": (0.2,), "noise_correlation": (0.9,), "max_steps": 15}
    task = ("microwave", "kettle", "light switch", "hinge cabinet")
    intended, executed = (
        Demonstrator(KitchenCollectConfig(record=record, **options), ENV_ID).demonstrate(task, (0, 3))
        for record in ("intended", "executed")
    )
    np.testing.assert_array_equal(intended.episode.observations, executed.episode.observations)
    disturbance = executed.episode.actions - intended.episode.actions
    inside = np.abs(executed.episode.actions[:, :7]) < 1  # not clipped
    assert disturbance[:, :7][inside].std() > 0.05
    steps = np.diff(disturbance[:, :7], axis=0)[inside[1:] & inside[:-1]]
    assert steps.std() < 0.15  # correlated: white noise of this size would step by 0.28


def test_the_stage_writes_a_minari_dataset_that_the_next_stage_can_load(tmp_path, monkeypatch):
    from training.__main__ import main

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    options = ["--set", "collect.demonstrator.episodes=2", "--set", "collect.demonstrator.max_steps=11"]
    assert main(["collect", "--config", "kitchen", "--run", str(tmp_path / "run"), *options]) == 0
    episodes = load_episodes("skillet/kitchen-v0")
    assert [(episode.observations.shape, episode.actions.shape) for episode in episodes] == [((12, 30), (11, 9))] * 2
    assert "| microwave | 2 | 0 |" in (tmp_path / "run" / "collect.md").read_text()


def test_a_wrong_option_or_domain_is_refused_with_what_there_is(tmp_path):
    config = load_config("kitchen", ["collect.demonstrator.episode=3"])
    with pytest.raises(ConfigError, match="episode: Extra inputs are not permitted; the options are episodes"):
        open_domain(config).collect(tmp_path)
    with pytest.raises(ConfigError, match="got 'kichen', the nearest is 'kitchen'"):
        open_domain(load_config("kitchen", ["domain.name=kichen"]))
