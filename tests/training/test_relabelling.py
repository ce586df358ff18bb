import numpy as np
import pytest
import torch
from torch import nn

from tests.training.test_rollout import run
from tests.training.tiny import LAYOUT, A, H, S, Z
from tests.training.worlds import CountingWorld
from training.data import Episode
from training.relabelling import Relabeller, weights_by_return
from training.rollout import Acting


def relabeller(world, tasks):
    return Relabeller(world, tasks, LAYOUT, H)


@pytest.mark.parametrize("limit", [10, 13])
@pytest.mark.parametrize("goal", [1, 4, 5, 6, 9, 10])
def test_a_relabelled_episode_equals_an_honest_one_in_that_task(limit, goal):
    world = CountingWorld(limit)
    (elsewhere,), (path,) = run(world, [100], Acting.by_policy(torch.ones(1, 2)), paths=True)
    _, ends, terminated = world.judge(path, [50, goal])
    assert (ends.tolist(), terminated.tolist()) == ([limit, goal], [False, True])
    relabelled = relabeller(world, [50, goal]).rewarded(elsewhere.rows, path)[1]
    (honest,), _ = run(world, [goal], Acting.by_policy(torch.ones(1, 2)))
    np.testing.assert_array_equal(relabelled.rows, honest.rows)
    assert (relabelled.steps, relabelled.episode_return, relabelled.success) == (honest.steps, honest.episode_return, honest.success)


def test_relabelling_leaves_the_original_as_it_was():
    world = CountingWorld(13)
    (episode,), (path,) = run(world, [12], paths=True)
    before = episode.rows.copy()
    relabeller(world, [6]).rewarded(episode.rows, path)
    np.testing.assert_array_equal(episode.rows, before)


def test_an_episode_that_ended_is_open_in_a_task_that_goes_on():
    world = CountingWorld(13)
    (episode,), (path,) = run(world, [12], paths=True)
    relabelled = relabeller(world, [100]).rewarded(episode.rows, path)[0]
    assert not relabelled.rows[:, LAYOUT.terminated].any()
    assert relabelled.episode_return == 12


def test_an_episode_weighs_by_what_it_would_have_earned_at_best():
    world, episodes = CountingWorld(13), [counted(12), counted(2), counted(1)]
    weights = weights_by_return(world, [2, 3], episodes, discount=0.5, temperature=10.0)
    earned = np.array([1 + 0.5 * 51, 1 + 0.5 * 51, 1.0])  # task 2, whose end pays 50 more after two steps, and soonest
    np.testing.assert_allclose(weights, np.exp((earned - earned.max()) / 10), rtol=1e-5)


class KnownSkills(nn.Module):
    """The skill of a window is the first entry of its first state, without spread."""

    def encoder(self, states, actions):
        assert states.shape[1:] == (H, S)
        assert actions.shape[1:] == (H, A)
        mean = states[:, 0, :1].expand(-1, Z)
        return mean, torch.zeros_like(mean)


def counted(steps, first=0):
    observations = np.zeros((steps + 1, S), np.float32)
    observations[:, 0] = first + np.arange(steps + 1)
    return Episode(observations, np.zeros((steps, A), np.float32))


def test_a_demonstration_is_cut_into_skills_that_end_with_it():
    world = CountingWorld(100)
    (found,) = relabeller(world, [100]).demonstrations(KnownSkills(), [counted(2 * H + 3)], 5, seed=0)
    ((rows,),) = found
    np.testing.assert_array_equal(rows[:, 0], [3, 3 + H])
    np.testing.assert_array_equal(rows[:, LAYOUT.skill], [[3] * Z, [3 + H] * Z])
    np.testing.assert_array_equal(rows[:, LAYOUT.next_state.start], [3 + H, 3 + 2 * H])
    assert rows[:, LAYOUT.reward].sum() == 2 * H  # the world pays one for every step


def test_each_task_takes_the_demonstrations_that_earn_most_in_it():
    world = CountingWorld(100)
    episodes = [counted(2 * H), counted(4 * H), counted(3 * H), counted(H)]  # the last one is a single skill: no use
    (found,) = relabeller(world, [100]).demonstrations(KnownSkills(), episodes, 2, seed=0)
    assert [len(rows) for (rows,) in found] == [4, 3]


def test_a_demonstration_that_one_task_takes_is_there_as_every_task_would_have_seen_it():
    short, long = relabeller(CountingWorld(100), [2 * H, 100]).demonstrations(KnownSkills(), [counted(4 * H)], 1, seed=0)
    ((in_short, in_long),) = long
    assert len(in_short) == 2  # where the first task ends
    assert len(in_long) == 4
    np.testing.assert_array_equal(short[0][0], in_short)
