import numpy as np
import pytest
import torch

from tests.training.tiny import LAYOUT
from training.replay import TaskReplay


def rows(rewards, first=0, terminated=False):
    """An episode whose states count up from ``first``."""
    made = np.zeros((len(rewards), LAYOUT.width), np.float32)
    made[:, 0] = first + np.arange(len(rewards))
    made[:, LAYOUT.next_state.start] = made[:, 0] + 1
    made[:, LAYOUT.reward] = rewards
    made[-1, LAYOUT.terminated] = terminated
    return made


def replay(tasks=1, capacity=10, discount=0.5):
    return TaskReplay(tasks, capacity, LAYOUT, discount)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_discounted_returns_as_by_hand():
    held = replay()
    held.add(0, rows([1, 0, 4]))
    held.add(0, rows([8]))
    assert held.discounted_return[0, :4].tolist() == [1 + 0.5 * 0 + 0.25 * 4, 0.5 * 4, 4, 8]
    assert held.episode_return[0, :4].tolist() == [5, 5, 5, 8]


def test_an_episode_that_was_cut_short_bounds_no_value_where_rewards_may_be_negative():
    held = replay(capacity=20)
    for rewards, terminated in (([-1, -1], False), ([-1, -1], True), ([0, 1], False)):
        held.add(0, rows(rewards, terminated=terminated))
    assert held.discounted_return[0, :6].tolist() == [-np.inf, -np.inf, -1.5, -1, 0.5, 1]


def test_the_ring_overwrites_its_oldest_rows():
    held = replay(capacity=5)
    held.add(0, rows([0, 0, 0], first=0))
    held.add(0, rows([0, 2, 4], first=3))
    assert held.rows[0, :, 0].tolist() == [5, 1, 2, 3, 4]
    assert held.discounted_return[0].tolist() == [4, 0, 0, 2, 4]
    assert (held.size(0), len(held), held.added.tolist()) == (5, 5, [6])
    held.add(0, rows([1] * 5, first=6))
    assert held.rows[0, :, 0].tolist() == [10, 6, 7, 8, 9]


def test_tasks_are_kept_apart():
    held = replay(tasks=3)
    held.add(2, rows([1, 1], first=20))
    held.add(0, rows([1], first=0))
    assert [held.size(task) for task in range(3)] == [1, 0, 2]
    assert len(held) == 3
    assert held.rows[2, :2, 0].tolist() == [20, 21]


def test_an_episode_longer_than_the_ring_is_refused():
    with pytest.raises(ValueError, match="11 skill transitions does not fit a replay of 10"):
        replay().add(0, rows([0] * 11))


def test_the_best_rows_are_whole_rewarded_episodes_of_the_upper_quarter():
    held = replay(capacity=100)
    assert held.best_rows(0).tolist() == []
    held.add(0, rows([0] * 9))
    assert held.best_rows(0).tolist() == []
    held.add(0, rows([0, 1]))
    assert held.best_rows(0).tolist() == [9, 10]  # few have any reward: all of them
    for _ in range(5):
        held.add(0, rows([0, 1]))
    held.add(0, rows([0, 5, 0]))
    assert set(held.best_rows(0).tolist()) >= {21, 22, 23}
    for _ in range(4):
        held.add(0, rows([0, 5, 0]))
    assert held.best_rows(0).tolist() == list(range(21, 36))  # 15 of 36 rows earn most: the others are no longer among the best


@pytest.mark.parametrize("rare_best", [True, False])
def test_a_rare_best_episode_may_be_the_best_alone(rare_best):
    held = TaskReplay(1, 100, LAYOUT, 0.5, rare_best=rare_best)
    for _ in range(10):
        held.add(0, rows([0, 3]))
    assert held.best_rows(0).tolist() == list(range(20))
    held.add(0, rows([3, 1]))
    assert held.best_rows(0).tolist() == ([20, 21] if rare_best else list(range(22)))
    for _ in range(10):
        held.add(0, rows([3, 1]))
    assert held.best_rows(0).tolist() == list(range(20, 42))


def test_the_best_rows_follow_the_ring():
    held = replay(capacity=4)
    held.add(0, rows([0, 1]))
    held.add(0, rows([0, 0]))
    assert held.best_rows(0).tolist() == [0, 1]
    assert held.rewarded_rows(0).tolist() == [1]
    held.add(0, rows([0, 0]))
    assert held.best_rows(0).tolist() == []
    assert held.rewarded_rows(0).tolist() == []


def test_a_batch_holds_the_asked_share_of_best_rows(generator):
    held = replay(tasks=2, capacity=300)
    held.add(0, rows([0] * 200))
    held.add(0, rows([0, 3], first=1000, terminated=True))
    held.add(1, rows([0] * 50, first=5000))
    batch = held.sample([1, 0], 40, 0.25, generator)
    assert batch.state.shape == (2, 40, 4)
    assert batch.skill.shape == (2, 40, 3)
    assert batch.reward.shape == batch.terminated.shape == batch.discounted_return.shape == (2, 40)
    assert (batch.state[0, :, 0] >= 5000).all()
    assert (batch.state[1, :10, 0] >= 1000).all()  # round(40 / 4)
    assert (batch.state[1, :, 0] >= 1000).sum() < 15
    assert batch.best.tolist() == [[0.0] * 40, [1.0] * 10 + [0.0] * 30]  # the first task has no rewarded episode
    torch.testing.assert_close(batch.next_state[..., 0], batch.state[..., 0] + 1)
    ends = batch.state[1, :, 0] == 1001
    assert torch.equal(batch.terminated[1] == 1, ends)
    assert (batch.discounted_return[1][ends] == 3).all()
    assert (batch.discounted_return[1][batch.state[1, :, 0] == 1000] == 1.5).all()


def test_a_flat_batch_keeps_each_tasks_rows_together(generator):
    held = replay(tasks=2)
    held.add(0, rows([0] * 4))
    held.add(1, rows([0] * 4, first=100))
    flat = held.sample([1, 0], 6, 0.0, generator).flat()
    assert flat.state.shape == (12, 4)
    assert (flat.state[:6, 0] >= 100).all()
    assert (flat.state[6:, 0] < 100).all()


def test_only_rows_that_are_held_are_sampled(generator):
    held = replay(capacity=1000)
    held.add(0, rows([0, 0], first=5))
    assert set(held.sample([0], 100, 0.3, generator).state[0, :, 0].tolist()) == {5.0, 6.0}
    assert set(held.sample_context([0], 100, generator)[0][0, :, 0].tolist()) == {5.0, 6.0}


def test_contexts_have_few_or_many_rewarded_rows_but_never_more_than_half_beside_chance(generator):
    held = replay(capacity=2000)
    held.add(0, rows([0] * 1950 + [1] * 50))
    counts = []
    for _ in range(300):
        context, _ = held.sample_context([0], 16, generator)
        assert context.shape == (1, 16, LAYOUT.width)
        counts.append(int((context[0, :, LAYOUT.reward] > 0).sum()))
    assert min(counts) == 0
    assert {1, 2, 4, 8} <= set(counts)
    assert max(counts) <= 10
    assert np.mean(counts) > 1  # uniform sampling would give 0.4


def test_a_context_of_no_rows_is_empty(generator):
    held = replay()
    held.add(0, rows([1]))
    assert held.sample_context([0], 0, generator)[0].shape == (1, 0, LAYOUT.width)


def test_the_same_generator_state_samples_the_same():
    held = replay()
    held.add(0, rows([0, 1, 0, 2]))
    one, other = (held.sample([0], 8, 0.5, torch.Generator().manual_seed(4)).state for _ in range(2))
    assert torch.equal(one, other)
