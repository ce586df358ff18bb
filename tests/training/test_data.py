import os
import warnings
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from training.data import Episode, load_episodes, write_minari
from training.simulators.maze import MAZE_ENV_ID

DATASET = "testing/maze-v0"


def make_episode(length, offset=0.0):
    observations = np.arange((length + 1) * 4, dtype=np.float32).reshape(-1, 4) / 100 + offset
    actions = np.linspace(-1, 1, length * 2, dtype=np.float32).reshape(-1, 2)
    return Episode(observations, actions)


EPISODES = [make_episode(3), make_episode(7, offset=1.0), make_episode(1, offset=2.0)]


def write(root, episodes=EPISODES, **options):
    return write_minari(episodes, DATASET, MAZE_ENV_ID, description="identifiable numbers", root=root, **options)


def write_with_spaces(root, monkeypatch, observation_space, observations):
    """A dataset of one episode of five steps that was not written by this project."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    buffer = EpisodeBuffer(
        observations=observations,
        actions=np.full((5, 2), 0.5),
        rewards=np.arange(5.0),
        terminations=np.arange(5) == 4,
        truncations=np.zeros(5, bool),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        action_space = gym.spaces.Box(-1, 1, (2,), np.float64)
        minari.create_dataset_from_buffers(DATASET, [buffer], observation_space=observation_space, action_space=action_space)
    monkeypatch.delenv("MINARI_DATASETS_PATH")


def test_what_is_written_is_loaded(tmp_path):
    write(tmp_path)
    loaded = load_episodes(DATASET, root=tmp_path)
    assert [len(episode) for episode in loaded] == [3, 7, 1]
    for episode, original in zip(loaded, EPISODES, strict=True):
        np.testing.assert_array_equal(episode.observations, original.observations)
        np.testing.assert_array_equal(episode.actions, original.actions)
        assert (episode.observations.dtype, episode.actions.dtype) == (np.float32, np.float32)


def test_minari_itself_reads_the_dataset_without_rewards_and_with_its_environment(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset(DATASET)
    assert (dataset.total_episodes, dataset.total_steps) == (3, 11)
    assert dataset.env_spec.id == "skillet/PointMaze-v0"
    episode = next(dataset.iterate_episodes([1]))
    assert episode.rewards.tolist() == [0.0] * 7
    assert episode.truncations.tolist() == [False] * 6 + [True]
    assert not episode.terminations.any()


def test_a_dataset_is_replaced_only_when_asked(tmp_path):
    write(tmp_path)
    with pytest.raises(FileExistsError, match=r"testing/maze-v0 exists.*overwrite"):
        write(tmp_path, EPISODES[:1])
    assert len(load_episodes(DATASET, root=tmp_path)) == 3
    write(tmp_path, EPISODES[:1], overwrite=True)
    assert len(load_episodes(DATASET, root=tmp_path)) == 1


def test_an_interrupted_write_keeps_the_old_dataset_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    write(tmp_path)

    def fail(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, EPISODES[:1], overwrite=True)
    monkeypatch.undo()
    assert len(load_episodes(DATASET, root=tmp_path)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["testing"]


def test_minaris_folder_is_used_when_it_is_set_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "shared"))
    assert write(None) == tmp_path / "shared" / DATASET
    assert len(load_episodes(DATASET)) == 3
    write(tmp_path / "other", EPISODES[:1])
    assert os.environ["MINARI_DATASETS_PATH"] == str(tmp_path / "shared")


def test_datasets_lie_under_data_minari_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    write(None)
    assert (tmp_path / "data/minari" / DATASET).is_dir()
    assert "MINARI_DATASETS_PATH" not in os.environ


def test_a_missing_dataset_is_named_beside_those_that_are_there(tmp_path):
    write(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"expected the dataset testing/mase-v0 .*found testing/maze-v0 \(the nearest is 'testing/maze-v0'\)"
    ):
        load_episodes("testing/mase-v0", root=tmp_path)


@pytest.mark.parametrize("dataset_id", ["maze", "testing/maze", "../maze-v0", "testing/maze v0"])
def test_a_dataset_is_written_only_under_a_full_minari_id(tmp_path, dataset_id):
    with pytest.raises(ValueError, match="expected a Minari id such as 'namespace/name-v0', got "):
        write_minari(EPISODES, dataset_id, MAZE_ENV_ID, description="", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_dict_observations_can_be_chosen(tmp_path, monkeypatch):
    box = gym.spaces.Box(-10, 10, (3,), np.float64)
    space = gym.spaces.Dict({"observation": box, "achieved_goal": gym.spaces.Box(-10, 10, (1,), np.float64)})
    values = np.arange(18.0).reshape(6, 3)
    write_with_spaces(tmp_path, monkeypatch, space, {"observation": values, "achieved_goal": np.zeros((6, 1))})
    (episode,) = load_episodes(DATASET, "observation", root=tmp_path)
    np.testing.assert_array_equal(episode.observations, values.astype(np.float32))
    assert (episode.observations.dtype, episode.actions.dtype) == (np.float32, np.float32)
    for key, hint in ((None, "got None$"), ("observations", r"got 'observations' \(the nearest is 'observation'\)$")):
        with pytest.raises(ValueError, match=r"observation_key among \['achieved_goal', 'observation'\], " + hint):
            load_episodes(DATASET, key, root=tmp_path)


def test_a_key_for_flat_observations_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="no dict observations: expected observation_key null, got 'observation'"):
        load_episodes(DATASET, "observation", root=tmp_path)


def test_entries_of_the_observations_are_taken_in_the_order_asked_for(tmp_path):
    write(tmp_path)
    for episode, original in zip(load_episodes(DATASET, None, (3, 0), root=tmp_path), EPISODES, strict=True):
        np.testing.assert_array_equal(episode.observations, np.stack([original.observations[:, 3], original.observations[:, 0]], 1))
        np.testing.assert_array_equal(episode.actions, original.actions)


def test_an_entry_that_is_not_there_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="episode 0: expected observation_entries from 0 to 3, as observations have 4, got 4"):
        load_episodes(DATASET, None, (0, 4), root=tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_observations_that_are_not_flat_vectors_of_floating_point_numbers_are_refused(tmp_path, monkeypatch, dtype):
    shape = (2, 2, 3) if dtype == np.float32 else (4,)
    write_with_spaces(tmp_path, monkeypatch, gym.spaces.Box(0, 255, shape, dtype), np.zeros((6, *shape), dtype))
    with pytest.raises(ValueError, match="testing/maze-v0: expected observations in a flat Box of floating-point numbers, got Box"):
        load_episodes(DATASET, root=tmp_path)


@pytest.mark.parametrize(("value", "found"), [(np.nan, "nan"), (-np.inf, "-inf"), (1e39, "inf")])
def test_numbers_that_are_not_finite_are_refused_where_they_are_used(tmp_path, monkeypatch, value, found):
    values = np.zeros((6, 3))
    values[4, 1] = value
    write_with_spaces(tmp_path, monkeypatch, gym.spaces.Box(-np.inf, np.inf, (3,), np.float64), values)
    with pytest.raises(ValueError, match=f"episode 0: expected finite observations, found {found} in row 4, entry 1"):
        load_episodes(DATASET, root=tmp_path)
    assert load_episodes(DATASET, None, (0, 2), root=tmp_path)[0].observations.shape == (6, 2)


@pytest.mark.parametrize(("observations", "actions"), [((3, 4), (3, 2)), ((4,), (3, 2)), ((4, 4), (3,))])
def test_an_episode_with_mismatched_shapes_is_refused(observations, actions):
    with pytest.raises(ValueError, match=r"observations \[L \+ 1, S\]"):
        Episode(np.zeros(observations, np.float32), np.zeros(actions, np.float32))


def test_a_root_may_be_given_as_text(tmp_path):
    write(str(tmp_path))
    assert len(load_episodes(DATASET, root=Path(tmp_path))) == 3
