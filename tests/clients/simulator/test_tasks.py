import pytest

from clients.simulator.tasks import DOMAINS, cell_from_text, cell_label, find_domain


def test_a_written_task_makes_the_environment_with_that_goal():
    env = find_domain("maze").make("5,19")
    assert env.unwrapped.goal == (5, 19)
    assert env.spec.id == "skillet/PointMaze-v0"


def test_writing_and_reading_a_task_are_inverse():
    assert cell_from_text(cell_label((5, 19))) == (5, 19)
    assert cell_from_text(" 5 , 19 ") == (5, 19)


@pytest.mark.parametrize("text", ["", "5", "5,19,1", "five,2", "1.5,2", "5;19"])
def test_a_task_that_is_no_cell_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match="ROW,COL"):
        cell_from_text(text)


def test_a_goal_in_a_wall_is_refused_when_the_environment_is_made():
    with pytest.raises(ValueError, match="in a wall"):
        find_domain("maze").make("0,0")


def test_an_unknown_domain_is_refused_naming_the_nearest():
    with pytest.raises(ValueError, match="got 'mase', the nearest is 'maze'"):
        find_domain("mase")
    assert set(DOMAINS) == {domain.name for domain in DOMAINS.values()}


def test_a_written_sequence_of_subtasks_makes_the_kitchen_with_that_task():
    text = "microwave,kettle,light switch,hinge cabinet"
    domain = find_domain("kitchen")
    env = domain.make(" Microwave, kettle,light switch ,hinge cabinet")
    assert env.unwrapped.task == domain.task_from_text(text) == ("microwave", "kettle", "light switch", "hinge cabinet")
    assert domain.task_label(env.unwrapped.task) == text
    env.close()


def test_a_misspelt_subtask_is_refused_naming_the_nearest():
    with pytest.raises(ValueError, match="got 'micowave', the nearest is 'microwave'"):
        find_domain("kitchen").make("micowave,kettle,light switch,hinge cabinet")
