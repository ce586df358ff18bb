"""The blocks of the table, the JSON file, the display."""

import io
import json
import re

import pytest
from rich.console import Console

from clients.sdk import SessionInfo
from clients.sdk.models import parse
from clients.simulator.report import Display, EpisodeResult, StepTimes, blocks, summary_table, times_line, write_json
from tests.clients.servers import SESSION
from tests.clients.simulator.test_run import status

ABOUT = parse(SessionInfo, {**SESSION, "seed": 3, "conditioning_episodes": 7})
SUBTASKS = ("kettle", "microwave", "light switch", "slide cabinet")


def episode(index, *, success=False, phase="exploring"):
    return EpisodeResult(index, phase, 1.0 if success else 0.0, success, 10 + index, index // 10, 0.5)


def kitchen_episode(index, *completed, phase="exploring"):
    steps = {name: 30 * rank for rank, name in enumerate(completed, 1)}
    return EpisodeResult(index, phase, float(len(steps)), len(steps) == 4, 280, 0, 0.5, steps)


def test_blocks_are_conditioning_then_five_then_tens():
    named = blocks([episode(i) for i in range(48)], conditioning=20)
    assert [name for name, _ in named] == ["conditioning (0-19)", "next five (20-24)", "25-34", "35-44", "45-47"]
    assert [result.index for _, inside in named for result in inside] == list(range(48))


def test_blocks_of_a_run_that_ended_early_or_went_on_later_hold_what_is_there():
    assert [name for name, _ in blocks([episode(0)], conditioning=20)] == ["conditioning (0-0)"]
    assert [name for name, _ in blocks([episode(30), episode(31)], conditioning=20)] == ["30-31"]
    assert blocks([], conditioning=20) == []


def test_the_json_file_has_exactly_the_agreed_fields(tmp_path):
    file = tmp_path / "out.json"
    write_json(file, env="maze", task="12,7", about=ABOUT, results=[episode(0), episode(1, success=True, phase="adapted")])
    record = json.loads(file.read_text())
    assert list(record) == ["env", "task", "seed", "conditioning", "bundle", "episodes"]
    assert (record["seed"], record["conditioning"], record["bundle"]) == (ABOUT.seed, ABOUT.conditioning_episodes, ABOUT.bundle.digest)
    assert record["episodes"][1] == {
        "index": 1,
        "phase": "adapted",
        "return": 1.0,
        "success": True,
        "steps": 11,
        "policy_version": 0,
        "seconds": 0.5,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_the_json_file_has_the_subtasks_of_tasks_that_have_any(tmp_path):
    file = tmp_path / "out.json"
    write_json(file, env="kitchen", task=",".join(SUBTASKS), about=ABOUT, results=[kitchen_episode(0), kitchen_episode(1, *SUBTASKS[:2])])
    episodes = json.loads(file.read_text())["episodes"]
    assert [(record["return"], record["completed"]) for record in episodes] == [(0.0, {}), (2.0, {"kettle": 30, "microwave": 60})]


def test_a_json_file_that_cannot_be_written_leaves_the_old_one_as_it_was(tmp_path):
    file = tmp_path / "out.json"
    file.write_text("old")
    broken = EpisodeResult(0, "exploring", float("nan"), False, 1, 0, 0.5)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, env="maze", task="12,7", about=ABOUT, results=[broken])
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_without_a_terminal_each_episode_is_one_plain_line_and_trouble_with_the_learner_is_told_once():
    out = io.StringIO()
    with Display(Console(file=out, width=160), episodes=2) as display:
        display.episode_started(0, "exploring")
        display.stepped(32, 0.0, 0)
        display.episode_finished(episode(0))
        display.waiting()
        for _ in range(2):
            display.waited(status(0, state="failed"), caught_up=True)
        display.episode_finished(episode(1, success=True, phase="adapted"))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "episode   0  exploring" in lines[0]
    assert lines[1].startswith("warning: fine-tuning failed")
    assert "adapted     reached  return 1  11 steps" in lines[2]
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_one_live_line_with_phase_success_return_and_version():
    out = io.StringIO()
    with Display(Console(file=out, width=160, force_terminal=True), episodes=2) as display:
        display.episode_finished(episode(0, success=True))
        display.episode_started(1, "adapted")
        display.stepped(64, 0.5, 3)
    assert all(part in out.getvalue() for part in ("episode 1", "adapted", "success 1.00", "return 0.5", "policy v3", "steps/s"))


def test_the_table_gives_the_mean_success_of_each_block():
    out = io.StringIO()
    Console(file=out, width=160).print(summary_table([episode(0), episode(1, success=True)], conditioning=1))
    assert "conditioning (0-0)" in out.getvalue()
    assert "1.00" in out.getvalue().splitlines()[-2]


def test_episodes_of_subtasks_tell_score_subtasks_with_their_steps_and_the_mean_score():
    out = io.StringIO()
    with Display(Console(file=out, width=160), episodes=2, subtasks=4) as display:
        display.episode_finished(kitchen_episode(0))
        display.episode_finished(kitchen_episode(1, *SUBTASKS[:3], phase="adapted"))
    first, second = out.getvalue().splitlines()
    assert first.startswith("episode   0  exploring   score 0 of 4: nothing  mean score 0.00  280 steps")
    assert second.startswith("episode   1  adapted     score 3 of 4: kettle 30, microwave 60, light switch 90  mean score 1.50  280 steps")


def test_a_terminal_shows_which_subtasks_are_finished_so_far():
    out = io.StringIO()
    with Display(Console(file=out, width=200, force_terminal=True), episodes=2, subtasks=4) as display:
        display.episode_finished(kitchen_episode(0, "kettle"))
        display.episode_started(1, "adapted")
        display.stepped(64, 2.0, 3, {"kettle": 20, "microwave": 33})
    assert "episode 1  adapted  mean score 1.00  score 2 of 4 (kettle, microwave)  policy v3" in out.getvalue()


def test_the_table_gives_the_mean_score_and_the_share_of_episodes_that_finished_each_subtask():
    out = io.StringIO()
    table = summary_table([kitchen_episode(0), kitchen_episode(1, *SUBTASKS[:3]), kitchen_episode(2, "kettle")], 1, SUBTASKS)
    Console(file=out, width=80).print(table)
    lines = [re.split(r" {2,}", line.strip()) for line in out.getvalue().splitlines()]
    assert next(line for line in lines if line[0] == "episodes")[3:7] == ["1", "2", "3", "4"]
    assert next(line for line in lines if line[0].startswith("next five"))[2:7] == ["2.00", "1.00", "0.50", "0.50", "0.00"]
    assert ["finished: 1 kettle, 2 microwave, 3 light switch, 4 slide cabinet"] in lines
    assert "\u2026" not in out.getvalue()


def test_the_times_say_what_one_step_is_made_of():
    line = times_line(StepTimes(steps=1000, simulator_s=0.1, service_s=0.4, learner_wait_s=2.0))
    assert line == "1000 steps, 2000 per second: 0.40 ms for the service's answer, 0.10 ms for the simulator; waited 2.0 s for the learner"
