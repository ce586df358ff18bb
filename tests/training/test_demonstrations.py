import numpy as np
import pytest
import torch

from tests.training.test_relabelling import KnownSkills, counted
from tests.training.tiny import LAYOUT, H, S, Z
from tests.training.worlds import CountingWorld
from training.demonstrations import ImitatedSkills, as_transitions, best_demonstrations


class PayingWorld(CountingWorld):
    """Pays 1 for the step on which the state's first entry comes to the task; nothing ends an episode."""

    def judge(self, path, tasks):
        rewards = (path[None, 1:, 0] == np.asarray(tasks)[:, None]).astype(np.float32)
        return rewards, np.full(len(tasks), len(path) - 1), np.zeros(len(tasks), bool)


def imitated(tasks, episodes, *, world=None, count=5):
    return ImitatedSkills(KnownSkills(), best_demonstrations(world or PayingWorld(100), tasks, episodes, count=count, horizon=H), H)


def starts(of, task, drawn=400):
    states, skills = of.sample([task], drawn, torch.Generator().manual_seed(0))
    assert states.shape == (1, drawn, S)
    assert skills.shape == (1, drawn, Z)
    np.testing.assert_array_equal(skills[0, :, 0], states[0, :, 0])  # each state with the skill that was chosen in it
    return states[0, :, 0].tolist()


def test_skills_begin_with_the_demonstration_and_one_ends_with_it():
    assert set(starts(imitated([2 * H + 3], [counted(2 * H + 3)]), 0)) == {0, H, H + 3}


def test_what_was_done_after_the_last_reward_is_not_imitated():
    assert set(starts(imitated([H + 1], [counted(4 * H)]), 0)) == {0, H}


def test_only_the_demonstrations_that_earn_most_are_imitated_and_the_better_of_them_more():
    better, worse, worst = counted(2 * H), counted(2 * H, first=100), counted(2 * H, first=200)

    class Graded(PayingWorld):
        def judge(self, path, tasks):
            rewards = np.zeros((1, len(path) - 1), np.float32)
            rewards[0, -1] = {0: 1001.0, 100: 1000.5, 200: 1000.0}[int(path[0, 0])]
            return rewards, np.array([len(path) - 1]), np.array([False])

    drawn = np.array(starts(imitated([0], [worst, worse, better], world=Graded(100), count=2), 0, drawn=4000))
    assert set(drawn) == {0, H, 100, 100 + H}
    assert (drawn < 100).mean() == pytest.approx(np.e / (1 + np.e), abs=0.03)


def test_a_task_that_no_demonstration_earns_anything_in_is_not_known():
    of = imitated([H, 1000], [counted(2 * H), counted(H - 1)])
    assert of.known == {0}


@pytest.mark.parametrize("steps", [2 * H, 2 * H + 3])
def test_a_demonstrations_transitions_begin_with_it_and_hold_all_its_rewards(steps):
    class Twice(PayingWorld):
        def judge(self, path, tasks):
            rewards = np.zeros((1, len(path) - 1), np.float32)
            rewards[0, [2, steps - 1]] = 1.0
            return rewards, np.array([steps]), np.array([True])

    ((judged,),) = best_demonstrations(Twice(100), [0], [counted(3 * H)], count=5, horizon=H)
    rows = as_transitions(KnownSkills(), judged, LAYOUT, H, torch.Generator())
    starts = [0, H] if steps == 2 * H else [0, H, H + 3]
    np.testing.assert_array_equal(rows[:, 0], starts)
    np.testing.assert_array_equal(rows[:, LAYOUT.skill], np.repeat(np.array(starts)[:, None], Z, 1))
    np.testing.assert_array_equal(rows[:, LAYOUT.next_state.start], np.array(starts) + H)
    assert rows[:, LAYOUT.reward].tolist() == [1.0] + [0.0] * (len(starts) - 2) + [1.0]
    assert rows[:, LAYOUT.terminated].tolist() == [0.0] * (len(starts) - 1) + [1.0]
