import gymnasium as gym
import minari
import numpy as np
import pytest

from training.config import load_config
from training.convert import main
from training.offline import offline_episodes

DATASET = "testing/arrays-v0"
LENGTHS = (3, 6, 1)
STEPS, EPISODES = sum(LENGTHS), len(LENGTHS)
POSITIONS = [*range(9), *range(18, 39)]


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def arrays(**changed):
    """Every row of observations and actions is another number."""
    rows = np.arange(STEPS + EPISODES, dtype=np.float32)[:, None] / 1000
    content = {
        "observations": rows + np.arange(59, dtype=np.float32) / 10000 - (np.arange(59) == 3).astype(np.float32),  # joint 4 is never near 0
        "actions": np.arange(STEPS, dtype=np.float32)[:, None] / 100 + np.zeros(9, np.float32),
        "lengths": np.array(LENGTHS, np.int32),
    }
    return {name: value for name, value in (content | changed).items() if value is not None}


def convert(tmp_path, *options, **changed):
    np.savez(tmp_path / "arrays.npz", **arrays(**changed))
    return main([str(tmp_path / "arrays.npz"), DATASET, "--config", "kitchen", *options])


def test_arrays_become_a_dataset_that_one_key_trains_on(tmp_path, capsys):
    assert convert(tmp_path, meta=np.array("{}")) == 0
    assert "3 episodes of 1 to 6 steps, 10 in all, " in (said := capsys.readouterr().err)
    assert f"--set data.minari={DATASET}" in said
    env = gym.make("clients.simulator:skillet/Kitchen-v0")
    episodes = offline_episodes(load_config("kitchen", [f"data.minari={DATASET}"]), env, lambda _: None)
    begin = 0
    for index, (episode, length) in enumerate(zip(episodes, LENGTHS, strict=True)):
        rows = slice(begin + index, begin + index + length + 1)
        np.testing.assert_array_equal(episode.observations, arrays()["observations"][rows][:, POSITIONS])
        np.testing.assert_array_equal(episode.actions, arrays()["actions"][begin : begin + length])
        begin += length


def test_the_dataset_keeps_all_entries_under_the_key_of_the_configuration(tmp_path):
    assert convert(tmp_path, "--set", "data.observation_key=state") == 0
    dataset = minari.load_dataset(DATASET)
    assert dataset.observation_space == gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (59,), np.float32)})
    assert dataset.action_space == gym.spaces.Box(-1.0, 1.0, (9,), np.float32)
    assert dataset.env_spec is None


def test_a_dataset_is_replaced_only_when_asked(tmp_path, capsys):
    assert convert(tmp_path) == 0
    assert convert(tmp_path) == 2
    assert "testing/arrays-v0 exists" in capsys.readouterr().err
    assert convert(tmp_path, "--overwrite") == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": None, "length": np.ones(1, int)}, "found ['observations', 'actions', 'length'] (the nearest is 'length')"),
        ({"lengths": np.array([3, 6])}, "expected observations [11, entries] of floating-point numbers for 2 episodes of 9"),
        ({"lengths": np.array([3.0, 7.0])}, "expected lengths [episodes] of whole numbers from 1, got float64 (2,)"),
        ({"lengths": np.array([10, 0, 0])}, "expected lengths [episodes] of whole numbers from 1"),
        ({"actions": np.zeros((9, 9))}, "expected actions [10, entries]"),
        ({"actions": np.zeros((10, 7))}, "expected actions of 9 entries, as the environment's, found 7"),
        ({"actions": np.full((10, 9), 1.5)}, "found one 0.5 beyond in episode 0"),
        ({"actions": np.full((10, 9), np.nan)}, "expected finite actions, found nan"),
        ({"observations": np.zeros((13, 30))}, "expected observation_entries from 0 to 29, as observations have 30, got 38"),
        ({"observations": np.zeros((13, 59), int)}, "expected observations [13, entries] of floating-point numbers"),
        ({"observations": np.full((13, 59), {}, object)}, "allow_pickle=False"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, capsys, changed, message):
    assert convert(tmp_path, **changed) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "minari").exists()


def test_a_file_that_is_no_npz_or_not_there_is_refused(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("text.npz", "missing.npz"):
        assert main([str(tmp_path / name), DATASET, "--config", "kitchen"]) == 2
        assert f"{name} to {DATASET}: " in capsys.readouterr().err
