import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.skill_folder import SkillFolder
from training.contract.context import ContextLayout, pack_rows, select_context, unpack_rows

LAYOUT = ContextLayout(state_dim=4, skill_dim=3)
STATE = np.array([1, 2, 3, 4], np.float32)
SKILL = np.array([0.1, 0.2, 0.3], np.float32)


def numbered(count, rewarded=()):
    """Context rows whose first column is their number; ``rewarded`` ones carry a reward."""
    rows = np.zeros((count, LAYOUT.width), np.float32)
    rows[:, 0] = np.arange(count)
    rows[list(rewarded), LAYOUT.reward] = 1.0
    return rows


def kept(rows, capacity):
    return select_context(rows, LAYOUT, capacity)[:, 0].astype(int).tolist()


def test_the_columns_cover_a_row_once_and_in_order():
    row = LAYOUT.row(STATE, SKILL, 7.0, True, STATE + 10)
    assert row.dtype == np.float32
    assert LAYOUT.width == len(row) == 13
    np.testing.assert_array_equal(row[LAYOUT.state], STATE)
    np.testing.assert_array_equal(row[LAYOUT.skill], SKILL)
    assert (row[LAYOUT.reward], row[LAYOUT.terminated]) == (7.0, 1.0)
    np.testing.assert_array_equal(row[LAYOUT.next_state], STATE + 10)
    columns = np.arange(LAYOUT.width)
    parts = [columns[LAYOUT.state], columns[LAYOUT.skill], [LAYOUT.reward], [LAYOUT.terminated], columns[LAYOUT.next_state]]
    assert np.concatenate(parts).tolist() == columns.tolist()


def fold(outcomes, horizon=5):
    """Rows of an episode of (reward, terminated, truncated) outcomes; the state after step t is t + 1 in every entry."""
    folder, rows, opened = SkillFolder(LAYOUT, horizon), [], False
    for step, (reward, terminated, truncated) in enumerate(outcomes):
        if not opened:
            folder.begin(np.full(4, step, np.float32), SKILL + len(rows))
        row = folder.add(reward, np.full(4, step + 1, np.float32), terminated=terminated, truncated=truncated)
        opened = row is None
        if row is not None:
            rows.append(row)
    return rows


def test_a_full_skill_sums_its_rewards_and_joins_its_first_and_last_state():
    (row,) = fold([(0.5, False, False)] * 5)
    np.testing.assert_array_equal(row, LAYOUT.row(np.zeros(4), SKILL, 2.5, False, np.full(4, 5)))


def test_an_episode_ending_inside_a_skill_closes_it_early():
    first, second = fold([(1.0, False, False)] * 6 + [(4.0, True, False)])
    assert (first[LAYOUT.reward], first[LAYOUT.terminated]) == (5.0, 0.0)
    assert (second[LAYOUT.reward], second[LAYOUT.terminated]) == (5.0, 1.0)
    assert second[LAYOUT.next_state].tolist() == [7.0] * 4
    np.testing.assert_allclose(second[LAYOUT.skill], SKILL + 1)


@pytest.mark.parametrize(("terminated", "truncated", "flag"), [(True, False, 1.0), (False, True, 0.0), (True, True, 1.0)])
@pytest.mark.parametrize("steps", [2, 5])
def test_only_termination_is_stored_and_truncation_is_not(terminated, truncated, flag, steps):
    (row,) = fold([(0.0, False, False)] * (steps - 1) + [(0.0, terminated, truncated)])
    assert row[LAYOUT.terminated] == flag


def test_a_termination_on_a_skills_first_step_belongs_to_that_skill():
    first, second = fold([(0.0, False, False)] * 5 + [(1.0, True, False)])
    assert (first[LAYOUT.reward], first[LAYOUT.terminated]) == (0.0, 0.0)
    assert (second[LAYOUT.reward], second[LAYOUT.terminated]) == (1.0, 1.0)


def test_the_folder_says_when_it_is_used_out_of_order():
    folder = SkillFolder(LAYOUT, 5)
    with pytest.raises(RuntimeError, match="call begin first"):
        folder.add(0.0, STATE, terminated=False, truncated=False)
    folder.begin(STATE, SKILL)
    folder.add(0.0, STATE, terminated=False, truncated=False)
    with pytest.raises(RuntimeError, match="begun 1 steps ago is still open"):
        folder.begin(STATE, SKILL)


def test_a_context_within_the_capacity_is_kept_whole():
    rows = numbered(8, rewarded=[2])
    np.testing.assert_array_equal(select_context(rows, LAYOUT, 8), rows)


def test_rare_rewarded_rows_are_all_kept_among_evenly_spaced_others():
    chosen = kept(numbered(1001, rewarded=[3, 500, 998]), 10)
    assert {3, 500, 998} <= set(chosen)
    assert len(chosen) == 10
    assert chosen[0] == 0
    assert chosen[-1] == 1000


def test_many_rewarded_rows_are_thinned_to_half():
    chosen = kept(numbered(100, rewarded=range(0, 100, 2)), 10)
    assert sum(number % 2 == 0 for number in chosen) == 5


def test_rewarded_rows_fill_what_unrewarded_ones_leave_free():
    chosen = kept(numbered(20, rewarded=range(2, 20)), 10)
    assert chosen[:2] == [0, 1]
    assert len(chosen) == 10


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 40))
def test_a_selection_is_a_deterministic_ordered_subset_of_the_right_size(rewarded, capacity):
    rows = numbered(len(rewarded), np.flatnonzero(rewarded))
    chosen = kept(rows, capacity)
    assert chosen == kept(rows.copy(), capacity)
    assert len(chosen) == min(len(rewarded), capacity)
    assert chosen == sorted(set(chosen))
    if sum(rewarded) <= capacity // 2:
        assert set(np.flatnonzero(rewarded)) <= set(chosen)


def test_rows_survive_packing():
    rows = np.random.default_rng(0).standard_normal((3, LAYOUT.width)).astype(np.float32)
    data = pack_rows(rows)
    assert len(data) == 3 * 13 * 4
    np.testing.assert_array_equal(unpack_rows(data, LAYOUT.width), rows)
    np.testing.assert_array_equal(unpack_rows(pack_rows(list(rows)), LAYOUT.width), rows)
    assert unpack_rows(b"", LAYOUT.width).shape == (0, 13)


def test_unpacked_rows_may_be_changed():
    rows = unpack_rows(pack_rows(numbered(2)), LAYOUT.width)
    rows[0, 0] = 9.0
    assert rows[0, 0] == 9.0


def test_half_a_row_is_refused():
    with pytest.raises(ValueError, match=r"expected a multiple of 52 bytes \(13 float32 columns\), got 50"):
        unpack_rows(pack_rows(numbered(1))[:-2], LAYOUT.width)
