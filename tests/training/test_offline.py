"""The kitchen on a Minari dataset in the layout of D4RL's: a dict whose ``observation`` has 59 entries, beside goals."""

import warnings

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from training.__main__ import main
from training.config import load_config
from training.contract.errors import ConfigError
from training.data import Episode, write_minari
from training.offline import offline_episodes

DATASET = "testing/kitchen-v0"
LENGTHS = (4, 7)
POSITIONS = [*range(9), *range(18, 39)]


@pytest.fixture(scope="module")
def env():
    env = gym.make("clients.simulator:skillet/Kitchen-v0")
    yield env
    env.close()


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def entry_values(length):
    """[length + 1, 59]: entry e of row r is e / 1000 + r / 100000, within every limit but that of joint 4, which is one lower."""
    return np.arange(59) / 1000 + np.arange(length + 1)[:, None] / 100000 - (np.arange(59) == 3)


def write_like_d4rl(width=59, actions=0.5, change=None):
    """Two episodes with rewards and terminations, float64."""
    box = gym.spaces.Box(-np.inf, np.inf, (width,), np.float64)
    goals = gym.spaces.Dict({"kettle": gym.spaces.Box(-np.inf, np.inf, (7,), np.float64)})
    space = gym.spaces.Dict({"achieved_goal": goals, "desired_goal": goals, "observation": box})
    buffers = []
    for length in LENGTHS:
        observations, goal = entry_values(length)[:, :width], {"kettle": np.ones((length + 1, 7))}
        if change:
            change(observations)
        buffers.append(
            EpisodeBuffer(
                observations={"achieved_goal": goal, "desired_goal": goal, "observation": observations},
                actions=np.full((length, 9), actions) * np.linspace(-1, 1, length)[:, None],
                rewards=np.arange(length, dtype=float),
                terminations=np.arange(length) == length - 1,
                truncations=np.zeros(length, bool),
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every optional field that is left out
        action_space = gym.spaces.Box(-2.0, 2.0, (9,), np.float64)
        minari.create_dataset_from_buffers(DATASET, buffers, observation_space=space, action_space=action_space)


def load(env, *overrides, said=None):
    config = load_config("kitchen", [f"data.minari={DATASET}", *overrides])
    return offline_episodes(config, env, (said if said is not None else []).append)


def test_one_key_trains_the_kitchen_on_the_positions_of_a_dataset_like_d4rls(env):
    write_like_d4rl()
    said = []
    episodes = load(env, said=said)
    for episode, length in zip(episodes, LENGTHS, strict=True):
        np.testing.assert_array_equal(episode.observations, entry_values(length)[:, POSITIONS].astype(np.float32))
        np.testing.assert_array_equal(episode.actions[:, 3], np.linspace(-0.5, 0.5, length, dtype=np.float32))
        assert (episode.observations.dtype, episode.actions.dtype) == (np.float32, np.float32)
    assert said == [f"offline data: 2 episodes, 11 steps of {DATASET}"]


def test_the_chosen_entries_are_what_the_environment_observes_of_the_same_state():
    raw, ours = (gym.make(name).unwrapped for name in ("FrankaKitchen-v1", "clients.simulator:skillet/Kitchen-v0"))
    theirs, observation = raw.reset(seed=3)[0]["observation"], ours.reset(seed=3)[0]
    np.testing.assert_allclose(theirs[POSITIONS], observation, rtol=1e-6)


def test_the_projects_own_data_go_through_the_same_loader(env):
    episode = Episode(entry_values(3)[:, POSITIONS].astype(np.float32), np.full((3, 9), 0.5, np.float32))
    write_minari([episode], "skillet/kitchen-v0", env.spec.id, description="flat")
    said = []
    (loaded,) = offline_episodes(load_config("kitchen"), env, said.append)
    np.testing.assert_array_equal(loaded.observations, episode.observations)
    assert said == ["offline data: 1 episodes, 3 steps of skillet/kitchen-v0"]


def test_observations_beyond_the_environments_limits_are_clipped_as_its_own_are(env):
    def turn_knob(observations):
        observations[[1, 3], 20] = 0.139  # knob 2, whose highest observation is 0.1

    write_like_d4rl(change=turn_knob)
    said = []
    episodes = load(env, said=said)
    for episode in episodes:
        assert episode.observations[[1, 3], 11].tolist() == [env.observation_space.high[11]] * 2
    assert said[-1].endswith("; 4 observations clipped to the environment's limits")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.observation_key=observations"], r"among \['achieved_goal', .*got 'observations' \(the nearest is 'observation'\)"),
        (["data.observation_key=achieved_goal"], "expected observations in a flat Box"),
        (["data.observation_key=null"], "expected observation_key among"),
        (["data.observation_entries=[0, 1, 59]"], "expected observation_entries from 0 to 58, as observations have 59, got 59"),
        (
            ["data.observation_entries=[0, 1, 2]"],
            "expected observations of 30 entries, as the environment's, found 3; .*data.observation_entries",
        ),
        (["data.observation_entries=null"], "expected observations of 30 entries, as the environment's, found 59"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(env, overrides, message):
    write_like_d4rl()
    with pytest.raises(ConfigError, match=f"^data.minari={DATASET}: .*{message}"):
        load(env, *overrides)


def test_a_dataset_with_fewer_entries_is_refused(env):
    write_like_d4rl(width=30)
    with pytest.raises(ConfigError, match="expected observation_entries from 0 to 29, as observations have 30, got 38"):
        load(env)


def test_actions_beyond_the_environments_limits_are_refused(env):
    write_like_d4rl(actions=1.25)
    with pytest.raises(ConfigError, match=r"expected actions in Box\(-1.0, 1.0, \(9,\), float32\), found one 0.25 beyond in episode 0"):
        load(env)


def test_actions_of_another_environment_are_refused(env):
    episode = Episode(np.zeros((4, 4), np.float32), np.zeros((3, 2), np.float32))
    write_minari([episode], "testing/maze-v0", "clients.simulator:skillet/PointMaze-v0", description="", observation_key="observation")
    config = load_config("kitchen", ["data.minari=testing/maze-v0", f"data.observation_entries={[0] * 30}"])
    with pytest.raises(ConfigError, match="expected actions of 9 entries, as the environment's, found 2"):
        offline_episodes(config, env, print)


def test_nan_is_refused_only_where_it_would_be_used(env):
    def spoil(observations):
        observations[2, 10] = np.nan  # a velocity

    write_like_d4rl(change=spoil)
    assert len(load(env)) == 2
    with pytest.raises(ConfigError, match="episode 0: expected finite observations, found nan in row 2, entry 0"):
        load(env, f"data.observation_entries={[10, *range(29)]}")


def test_collect_has_nothing_to_make_and_checks_what_is_there(tmp_path, root, capsys):
    write_like_d4rl()
    run = ["collect", "--config", "kitchen", "--run", str(tmp_path / "run"), "--set", f"data.minari={DATASET}"]
    before = sorted(root.rglob("*"))
    assert main(run) == 0
    assert capsys.readouterr().err.splitlines() == [
        "collect: nothing to make, data.minari names the offline data",
        f"offline data: 2 episodes, 11 steps of {DATASET}",
    ]
    assert sorted(root.rglob("*")) == before
    assert main([*run, "--set", "data.observation_key=obs"]) == 2


def test_a_run_on_other_data_is_not_mixed_in(tmp_path, capsys):
    write_like_d4rl()
    run = ["collect", "--config", "kitchen", "--run", str(tmp_path / "run")]
    assert main([*run, "--set", f"data.minari={DATASET}"]) == 0
    (tmp_path / "run" / "skills.safetensors").touch()
    for other in ([], ["--set", "data.minari=testing/other-v0"]):
        assert main([*run, *other]) == 2
        assert "holds a run with another data; choose another folder with --run, or delete it" in capsys.readouterr().err
    assert main([*run, "--set", f"data.minari={DATASET}"]) == 0
