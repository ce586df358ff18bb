"""Blocks, tables and pictures of learning curves."""

import numpy as np

from benchmarks.learning_curve import Curves, plot, summarise, table
from training.methods.published import PUBLISHED


def records(env, conditioning, *runs, phases=None):
    """Client records from returns, one list for each run."""

    def episodes(values):
        return [{"return": value, "phase": (phases or {}).get(index, "exploring")} for index, value in enumerate(values)]

    return [{"env": env, "conditioning": conditioning, "task": task, "episodes": episodes(values)} for task, values in runs]


def kitchen(episodes=100):
    """Two runs with score 1 while conditioning and 2 or 4 after it."""
    runs = [("a", [1.0] * 20 + [2.0] * (episodes - 20)), ("b", [1.0] * 20 + [4.0] * (episodes - 20))]
    return Curves.of(records("kitchen", 20, *runs, phases={20: "adapted", 21: "finetuning"}), episodes, 4)


def test_blocks_of_the_kitchen_are_conditioning_five_after_it_and_later_ones_that_were_run():
    assert kitchen().blocks == {
        "conditioning": (1, 20), "five after conditioning": (21, 25), "episodes 30-40": (30, 40), "episodes 50-60": (50, 60),
        "episodes 90-100": (90, 100),
    }  # fmt: skip
    assert list(kitchen(60).blocks) == ["conditioning", "five after conditioning", "episodes 30-40", "episodes 50-60"]


def test_the_summary_gives_means_over_runs_with_intervals_and_means_of_phases_as_the_service_named_them():
    summary = summarise(kitchen())
    assert summary["blocks"]["conditioning"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summary["blocks"]["five after conditioning"] == {"mean": 3.0, "low": 2.0, "high": 4.0}
    assert summary["phases"]["adapted"] == {"episodes": 2, "mean": 3.0}
    assert list(summary["phases"]) == ["exploring", "adapted", "finetuning"]
    assert summary["per_episode"][19:21] == [1.0, 3.0]


def test_the_table_sets_blocks_beside_the_mean_of_the_published_points_within_them():
    text = table(kitchen(), PUBLISHED["kitchen"])
    assert text.startswith(
        "| ordered score, 0 to 4, 2 runs | mean | 95 % interval | SiMPL (published) | SPiRL (published) | MTRL (published) |"
    )
    simpl = PUBLISHED["kitchen"]["SiMPL (published)"]
    later = np.mean([simpl[51], simpl[56]])
    assert "| conditioning | 1.000 | 1.000 to 1.000 |  | 0.61 | 0.82 |" in text
    assert f"| five after conditioning | 3.000 | 2.000 to 4.000 | {simpl[21]:.2f} | 1.00 | 0.85 |" in text
    assert f"| episodes 50-60 | 3.000 | 2.000 to 4.000 | {later:.2f} |" in text
    assert "| b | 1.00 | 4.00 | 4.00 |" in text


def test_the_first_reward_of_each_run_is_counted_and_what_follows_it_averaged():
    runs = [("a", [0.0, 1.0, 0.0, 1.0] + [1.0] * 4), ("b", [0.0] * 7 + [1.0]), ("c", [0.0] * 8)]
    curves = Curves.of(records("maze", 2, *runs), 8)
    assert summarise(curves)["first_reward"] == {"runs_within": {5: 1, 8: 2}, "mean_after": 0.8333}
    assert "| within 8 episodes | 2 |" in table(curves, {})


def test_single_episodes_are_averaged_with_their_neighbours_on_the_same_side_of_the_end_of_conditioning():
    curves = Curves.of(records("maze", 20, ("a", [0.0] * 20 + [1.0] * 10)), 30)
    text = table(curves, {"other": {20: 0.5, 21: 0.6}})
    assert "| 20 | 0.00 | 0.50 |" in text
    assert "| 21 | 1.00 | 0.60 |" in text


def test_curves_of_few_episodes_can_be_drawn_with_published_points_and_without(tmp_path):
    for name, conditioning in (("some", 1), ("all", 20)):
        few = Curves.of(records("maze", conditioning, ("a", [0.0, 1.0, 1.0])), 3)
        plot(few, {}, tmp_path / f"{name}.png")
    plot(kitchen(60), PUBLISHED["kitchen"], tmp_path / "deep/er.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("some.png", "all.png", "deep/er.png"))
