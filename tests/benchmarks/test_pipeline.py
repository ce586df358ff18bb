"""The pipeline benchmark: rates from the stages' logs, and the whole of it at toy size."""

import json

import pytest

from benchmarks.pipeline import STAGES, main, new_folder, training_rate

TOY = {
    "domain.env_id": "tests.benchmarks.short_maze:skillet/ShortMaze-v0",
    "domain.train_tasks": "train_10",
    "collect.demonstrator": '{"episodes": 40}',
    "skills.steps": "12",
    "skills.batch": "16",
    "meta.updates": "4",
    "meta.updates_per_epoch": "2",
    "belief.particles": "0",  # nothing is rewarded in so little
    "evaluate.exploration": "switching",
    "evaluate.episodes": "2",
    "evaluate.conditioning_episodes": "1",
    "evaluate.seeds": "1",
    "finetuning.warm_start_updates": "2",
    "finetuning.updates_per_episode": "1",
}


def test_the_rate_is_the_last_lines_steps_over_the_whole_time(tmp_path):
    log = tmp_path / "skills.jsonl"
    log.write_text('{"at": 200, "elapsed_s": 4.0, "loss": 1}\n{"at": 300, "elapsed_s": 12.0, "loss": 0}\n')
    assert training_rate(log) == (300, 25.0)


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "skills.safetensors").touch()
    with pytest.raises(FileExistsError, match="expected an empty folder"), new_folder(tmp_path):
        pass


def test_a_stage_that_fails_ends_the_benchmark_and_is_named(capfd):
    assert main(["--config", "maze", "--set", "skills.step=3"]) == 1
    said = capfd.readouterr()
    assert "the stage 'collect' ended with status 2" in said.out.replace("\n", " ")
    assert "the nearest is 'steps'" in said.err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_toy_pipeline_from_nothing_is_measured_stage_by_stage(tmp_path, capfd):
    out, run = tmp_path / "out.json", tmp_path / "run"
    assert main(["--run", str(run), "--json", str(out), *(w for k, v in TOY.items() for w in ("--set", f"{k}={v}"))]) == 0
    record = json.loads(out.read_text())
    assert [stage["stage"] for stage in record["stages"]] == list(STAGES)
    assert [stage["gradient_steps"] for stage in record["stages"]] == [None, 12, 4, None, None, None]
    assert all(stage["gradient_steps_per_s"] > 0 for stage in record["stages"] if stage["gradient_steps"])
    assert record["wall_s"] == pytest.approx(sum(stage["wall_s"] for stage in record["stages"]), abs=0.01)
    assert (run / "exported/manifest.json").is_file()
    assert "maze, from nothing" in capfd.readouterr().out
