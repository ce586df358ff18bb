"""The command, on the maze at tiny sizes."""

import json

import pytest

from training.__main__ import main

SIZES = [
    "--bundle", "bundles/maze", "--tasks", "test:2", "--episodes", "2", "--deterministic-every", "2",
    *(f"--set={change}" for change in ("finetuning.warm_start_updates=1", "finetuning.updates_per_episode=1", "finetuning.batch=8")),
    "--set=evaluate.conditioning_episodes=1",
]  # fmt: skip


def test_it_leaves_json_tables_and_a_figure(tmp_path, capsys):
    command = ["compare", "--config", "maze", *SIZES, "--methods", "skillet", "spirl", "--out", str(tmp_path)]
    assert main(command) == 0
    summary = json.loads((tmp_path / "compare.json").read_text())
    assert list(summary) == ["skillet", "spirl"]
    for method in summary.values():
        assert (method["runs"], method["episodes"], list(method["deterministic"])) == (2, 2, ["2"])
    assert (tmp_path / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    tables = (tmp_path / "compare.md").read_text()
    assert "| method | what it is |" in tables
    assert "| SPiRL |" in tables
    assert "compare: 2 of 2: SPiRL" in capsys.readouterr().err


def test_the_report_has_what_earlier_commands_ran_and_nothing_of_another_setting(tmp_path, capsys):
    command = ["compare", "--config", "maze", *SIZES, "--out", str(tmp_path)]
    assert main([*command, "--methods", "spirl", "--seeds", "0", "1"]) == 0
    assert main([*command, "--methods", "skillet"]) == 0
    summary = json.loads((tmp_path / "compare.json").read_text())
    assert {name: method["runs"] for name, method in summary.items()} == {"skillet": 2, "spirl": 4}
    foreign = tmp_path / "sessions/spirl-meta0-seed1.json"
    content = json.loads(foreign.read_text()) | {"fingerprint": "another"}
    foreign.write_text(json.dumps(content))
    assert main([*command, "--methods", "skillet"]) == 0
    assert json.loads((tmp_path / "compare.json").read_text())["spirl"]["runs"] == 2
    assert f"{foreign} is not in the report" in capsys.readouterr().err.replace("\n", "")
    shorter = tmp_path / "sessions/spirl-meta0-seed0.json"
    content = json.loads(shorter.read_text())
    for session in content["sessions"]:
        session["returns"].append(0.0)
    (tmp_path / "sessions/spirl-meta0-seed1.json").write_text(json.dumps(content | {"seed": 1}))
    assert main([*command, "--methods", "skillet"]) == 0
    summary = json.loads((tmp_path / "compare.json").read_text())
    assert (summary["spirl"]["runs"], summary["spirl"]["episodes"]) == (2, 3)
    assert "spirl-meta0-seed0 is not in the report: it stands at episode 2 of 3" in capsys.readouterr().err.replace("\n", " ")


def test_processes_of_their_own_come_to_the_same(tmp_path):
    command = ["compare", "--config", "maze", *SIZES, "--methods", "spirl", "--meta-seeds", "0", "1"]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    assert main([*command, "--out", str(tmp_path / "two"), "--jobs", "2"]) == 0
    for file in (tmp_path / "one" / "sessions").iterdir():
        assert json.loads(file.read_text())["sessions"] == json.loads((tmp_path / "two" / "sessions" / file.name).read_text())["sessions"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "tset"], "--tasks tset: expected a split, one of"),
        (["--run", "nowhere"], "run the stage 'skills' first"),
        (["--set", "networks.task_embedding_dim=3"], "was made with another networks"),
        (["--tasks", "test:0"], "--tasks test:0: expected a whole number of at least 1, got '0'"),
        (["--tasks", "test:ten"], "expected a whole number of at least 1, got 'ten'"),
        (["--device", "cuda"], "torch finds no CUDA device here; use --device cpu"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_reason(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    source = [] if "--run" in arguments else ["--bundle", "bundles/maze"]
    if source == []:
        monkeypatch.chdir(tmp_path)
    assert main(["compare", "--config", "maze", "--methods", "spirl", "--out", str(tmp_path), *source, *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "lowest"),
    [("--episodes", "0", 1), ("--jobs", "0", 1), ("--seeds", "-1", 0), ("--meta-seeds", "-1", 0), ("--deterministic-every", "-1", 0)],
)
def test_counts_and_seeds_that_cannot_be_are_refused_before_anything_is_run(option, value, lowest, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", "maze", "--bundle", "bundles/maze", "--out", str(tmp_path / "out"), f"{option}={value}"])
    assert stopped.value.code == 2
    assert f"argument {option}: expected a whole number of at least {lowest}, got '{value}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
