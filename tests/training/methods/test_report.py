import numpy as np
import pytest

from training.methods.catalogue import METHODS
from training.methods.figure import plot_comparison
from training.methods.report import MethodResults, summarise, tables

COST = {
    "meta": {"updates": 2000, "environment_steps": 3_000_000, "cpu_s": 600},
    "target": {"updates": 50, "environment_steps": 7000, "cpu_s": 120},
}


def unit(returns, seed=0, cost=COST, deterministic=()):
    sessions = [{"task": [i, 0], "returns": row, "deterministic_returns": dict(deterministic)} for i, row in enumerate(returns)]
    return {"method": "skillet", "meta_seed": 0, "seed": seed, "conditioning": 20, "cost": cost, "sessions": sessions}


@pytest.fixture
def found():
    """Two sessions of 60 episodes that succeed from episode 31 on, and one unit more that stopped earlier."""
    rises = [0.0] * 30 + [1.0] * 30
    longer = unit([rises, rises], deterministic={"20": 0.5})
    return MethodResults.of(METHODS["skillet"], [longer, unit([rises[:55]] * 2, 1, deterministic={"20": 1.0, "40": 1.0})])


def test_results_are_cut_to_what_every_unit_has(found):
    assert found.returns.shape == (2, 55)
    assert (found.runs, found.meta_seeds, found.seeds, found.conditioning) == (4, 1, 2, 20)
    assert {at: values.tolist() for at, values in found.deterministic.items()} == {20: [0.75, 0.75]}


def test_a_row_averages_the_five_episodes_after_it(found):
    assert found.after(28).tolist() == pytest.approx([0.6] * 2)  # episodes 29 to 33
    assert found.after(54).tolist() == [1.0] * 2  # the last five
    assert found.after(56) is None


def test_blocks_are_means_of_all_their_episodes_and_only_of_those_that_were_run(found):
    assert found.block(21, 40).tolist() == pytest.approx([0.5] * 2)
    assert list(summarise([found], 0.9)["skillet"]["blocks"]) == ["1 to 10", "11 to 15", "21 to 25", "31 to 40"]
    rows = [line.strip("| ").split(" | ") for line in tables(summarise([found], 0.9), {}, 0.9).splitlines()]
    assert ["31 to 40", "1.00 (1.00 to 1.00)"] in rows


def test_single_figures(found):
    assert found.episodes_to(0.9) == 31
    assert found.episodes_to(1.1) is None
    assert found.area().tolist() == pytest.approx([0.4] * 2)
    assert MethodResults.of(METHODS["sac"], [unit([[0.0] * 29])]).area() is None


def test_how_much_less_than_skillet_is_told_task_by_task_over_the_episodes_that_both_have():
    own = MethodResults.of(METHODS["skillet"], [unit([[1.0] * 60, [0.5] * 60])])
    other = MethodResults.of(METHODS["mtrl"], [unit([[0.8] * 40, [0.3] * 40])])
    summary = summarise([own, other], 0.9)
    assert summary["skillet"]["less_than_skillet"] is None
    assert summary["mtrl"]["less_than_skillet"] == pytest.approx({"mean": 0.2, "low": 0.2, "high": 0.2})  # only tasks differ
    assert "| less than Skillet, task by task, all shared episodes |  | 0.20 (0.20 to 0.20) |" in tables(summary, {}, 0.9)
    assert summarise([other], 0.9)["mtrl"]["less_than_skillet"] is None
    assert "less than Skillet" not in tables(summarise([other], 0.9), {}, 0.9)


@pytest.mark.parametrize("seeds", [1, 8])
def test_more_runs_of_the_same_tasks_do_not_narrow_the_interval(seeds):
    mixed = MethodResults.of(METHODS["spirl"], [unit([[0.0] * 60, [1.0] * 60], seed) for seed in range(seeds)])
    interval = summarise([mixed], 0.9)["spirl"]["after"]["20"]
    assert (interval["mean"], interval["low"], interval["high"]) == (0.5, 0.0, 1.0)


def test_each_meta_training_seed_counts_as_much_as_another():
    units = [unit([[1.0] * 60], seed) for seed in range(3)] + [unit([[0.0] * 60]) | {"meta_seed": 1}]
    found = MethodResults.of(METHODS["skillet"], units)
    assert (found.runs, found.meta_seeds, found.returns.mean()) == (4, 2, 0.5)


def test_the_tables_set_methods_beside_each_other_and_the_published_points(found):
    other = MethodResults.of(METHODS["sac"], [unit([[0.0] * 60] * 2, cost=COST | {"meta": None})])
    text = tables(summarise([found, other], 0.9), {"SiMPL (published)": {20: 0.43, 40: 0.7}}, 0.9)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    assert ["after episode", "Skillet", "SAC", "SiMPL (published)"] in rows
    assert ["40", "1.00 (1.00 to 1.00)", "0.00 (0.00 to 0.00)", "0.70"] in rows
    assert ["episodes to 0.9", "31", "never"] in rows
    assert ["Skillet", "3,000,000", "2,000", "10", "7,000", "50", "2"] in rows
    assert ["SAC", "not known", "not known", "not known", "7,000", "50", "2"] in rows
    assert "| 100 |" not in text


def test_the_figure_has_linear_axes_own_curves_and_published_points(found, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("training.methods.figure.plt.close", drawn.append)
    plot_comparison([found], {"SiMPL (published)": {20: 0.43, 500: 1.0}}, tmp_path / "a" / "b.png", domain="maze", full_return=1.0)
    assert (tmp_path / "a" / "b.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (figure,) = drawn
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["SiMPL (published)"].get_xdata().tolist() == [20]
    own = next(line for label, line in lines.items() if label.startswith("Skillet"))
    assert own.get_color() != lines["SiMPL (published)"].get_color()
    assert (own.get_marker(), lines["SiMPL (published)"].get_marker()) == ("None", "o")
    assert np.max([line.get_ydata().max() for line in ax.get_lines()]) <= 1.0
