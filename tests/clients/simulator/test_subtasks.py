import numpy as np
import pytest

from clients.simulator.subtasks import load_kitchen

TASK = ("microwave", "kettle", "light switch", "hinge cabinet")


@pytest.fixture(scope="module")
def kitchen():
    return load_kitchen()


def states_with(kitchen, *done_at_each_state):
    """States [n, 30] in which exactly the named subtasks are done."""
    states = np.full((len(done_at_each_state), 30), 10.0)
    for state, names in zip(states, done_at_each_state, strict=True):
        for name in names:
            state[list(kitchen.entries[name])] = kitchen.goals[name]
    return states


def test_the_data_file_has_23_training_and_10_test_tasks_without_overlap(kitchen):
    train, test = kitchen.tasks("train"), kitchen.tasks("test")
    assert (len(train), len(test)) == (23, 10)
    assert not set(train) & set(test)
    sisl = kitchen.tasks("train-sisl")
    assert len(set(sisl)) == 25
    assert set(train) < set(sisl)
    assert not set(sisl) & set(test)
    assert all(kitchen.check_task(task) == task for task in train + test)


def test_goals_entries_and_threshold_are_those_of_gymnasium_robotics(kitchen):
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

    assert kitchen.threshold == kitchen_env.BONUS_THRESH
    assert set(kitchen.subtasks) == set(kitchen_env.OBS_ELEMENT_GOALS)
    for name in kitchen.subtasks:
        assert kitchen.entries[name] == tuple(kitchen_env.OBS_ELEMENT_INDICES[name])
        assert kitchen.goals[name] == tuple(kitchen_env.OBS_ELEMENT_GOALS[name])


def test_a_subtask_is_done_within_the_threshold_of_its_goal_and_not_at_it(kitchen):
    states = states_with(kitchen, ["microwave"], ["microwave"], ["microwave"])
    states[:, 22] += [0.29, 0.31, -0.29]
    assert kitchen.done(states)[:, kitchen.subtasks.index("microwave")].tolist() == [True, False, True]


def test_subtasks_pay_one_by_one_in_their_order_and_the_last_ends_the_task(kitchen):
    path = states_with(kitchen, [], ["microwave"], ["kettle"], [], ["light switch"], ["hinge cabinet"], [])
    rewards, ends, success = kitchen.judge(path, [TASK])
    assert rewards.tolist() == [[1, 1, 0, 1, 1, 0]]
    assert (ends.tolist(), success.tolist()) == ([5], [True])


def test_a_subtask_done_early_pays_together_with_its_predecessors(kitchen):
    path = states_with(kitchen, [], ["kettle"], ["kettle", "light switch"], ["microwave", "kettle", "light switch"], ["hinge cabinet"])
    rewards, ends, success = kitchen.judge(path, [TASK])
    assert rewards.tolist() == [[0, 0, 3, 1]]
    assert (ends.tolist(), success.tolist()) == ([4], [True])


def test_a_subtask_that_was_undone_before_its_turn_pays_nothing(kitchen):
    path = states_with(kitchen, [], ["kettle"], ["microwave"], ["light switch", "hinge cabinet"])
    rewards, ends, success = kitchen.judge(path, [TASK])
    assert rewards.tolist() == [[0, 1, 0]]
    assert (ends.tolist(), success.tolist()) == ([3], [False])


def test_the_first_state_of_a_path_pays_nothing(kitchen):
    assert kitchen.judge(states_with(kitchen, ["microwave"], []), [TASK])[0].tolist() == [[0]]


def test_judging_a_path_agrees_with_paying_state_by_state(kitchen):
    rng = np.random.default_rng(0)
    for _ in range(50):
        named = [[name for name in kitchen.subtasks if rng.random() < 0.3] for _ in range(12)]
        path = states_with(kitchen, *named)
        tasks = [tuple(rng.permutation(kitchen.subtasks)[:4]) for _ in range(3)]
        rewards, ends, success = kitchen.judge(path, tasks)
        for task, row, end, whole in zip(tasks, rewards, ends, success, strict=True):
            finished, expected = 0, []
            for done in kitchen.done(path[1:]):
                now = kitchen.pay(done, task, finished)
                expected.append(now - finished)
                finished = now
            assert row.tolist() == expected
            assert whole == (finished == 4)
            assert end == (np.flatnonzero(expected)[-1] + 1 if whole else len(path) - 1)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (["microwave", "ketle", "light switch", "hinge cabinet"], "got 'ketle', the nearest is 'kettle'"),
        (["microwave", "kettle", "light", "hinge cabinet"], "the nearest is 'light switch'"),
        (["microwave", "kettle", "kettle", "hinge cabinet"], "expected 4 distinct subtasks"),
        (["microwave", "kettle"], "expected 4 distinct subtasks, got 2"),
        ("microwave", "expected a sequence of 4 subtask names"),
        ([1, 2, 3, 4], "expected subtasks among"),
    ],
)
def test_a_task_that_is_none_is_refused(kitchen, task, message):
    with pytest.raises(ValueError, match=message):
        kitchen.check_task(task)


def test_an_unknown_split_is_refused_with_the_list(kitchen):
    with pytest.raises(ValueError, match="train, train-sisl, test"):
        kitchen.tasks("validation")
