"""Robots that step together get what each would get alone."""

import json
import time
from contextlib import closing
from urllib.parse import urlsplit

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from clients.sdk import FinetuningStatus, Session, SessionGroup, SkilletClient, errors
from clients.simulator.__main__ import main
from clients.simulator.fleet import Fleet
from clients.simulator.report import Display
from clients.simulator.run import Simulation
from tests.clients.chaos_proxy import ChaosProxy

SEEDS = (4, 5, 6)


class Recorded(gym.Wrapper):
    """An environment that notes what it was told to do, and ends after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(gym.wrappers.TimeLimit(gym.make("clients.simulator:skillet/PointMaze-v0", goal=(12, 7)), steps))
        self.actions = []

    def step(self, action):
        self.actions.append(np.array(action))
        return super().step(action)


def opened(client, seed):
    return client.open_session("maze-like", seed=seed, conditioning_episodes=1)


def test_each_robot_of_a_fleet_goes_the_way_that_it_goes_alone_also_when_others_have_ended(service_url):
    lengths = (23, 40, 31)
    watcher = Display(Console(quiet=True), 6)
    with SkilletClient(service_url) as client:
        envs = [Recorded(steps) for steps in lengths]
        fleet = Fleet(envs, SessionGroup(client, [opened(client, seed) for seed in SEEDS]), SEEDS, watcher)
        rounds = list(fleet.rounds(2, max_wait_s=0))
        assert [[result.steps for result in finished] for finished in rounds] == [[*lengths]] * 2
        assert fleet.times.steps == 2 * sum(lengths)
        for index, seed in enumerate(SEEDS):
            with closing(Recorded(lengths[index])) as env:
                alone = list(Simulation(env, opened(client, seed), seed, watcher).episodes(2, max_wait_s=0))
                np.testing.assert_array_equal(env.actions, envs[index].actions)
            wanted = [(result.index, result.phase, result.total_reward, result.success, result.steps) for result in alone]
            found = [finished[index] for finished in rounds]
            assert [(result.index, result.phase, result.total_reward, result.success, result.steps) for result in found] == wanted
            envs[index].close()


def test_a_fleet_is_reported_and_its_sessions_are_closed(service_url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("clients.simulator.tasks.Domain.make", lambda self, task: Recorded(12))
    out = tmp_path / "fleet.json"
    command = ["--url", service_url, "--env", "maze", "--task", "12,7", "--episodes", "2", "--no-wait", "--json", str(out)]
    assert main([*command, "--num-envs", "3", "--seed", "4"]) == 0
    record = json.loads(out.read_text())
    assert [(run["seed"], len(run["episodes"])) for run in record["runs"]] == [(seed, 2) for seed in SEEDS]
    printed = capsys.readouterr().out
    assert printed.count("episode   1") == 3
    assert "72 steps" in printed
    with SkilletClient(service_url) as client:
        assert not [info for info in client.list_sessions() if info.seed in SEEDS and info.conditioning_episodes != 1]


def test_a_refusal_of_one_session_ends_the_run_and_is_told(service_url, monkeypatch, capsys):
    monkeypatch.setattr(SessionGroup, "step", lambda self, outcomes: dict.fromkeys(outcomes, errors.SessionClosed("it was closed")))
    assert main(["--url", service_url, "--env", "maze", "--task", "12,7", "--episodes", "1", "--num-envs", "2", "--no-wait"]) == 1
    assert "it was closed" in capsys.readouterr().err


class CutShort(Recorded):
    """Ends the run in its second episode's third step: the service is gone, or somebody presses Ctrl-C as well."""

    def __init__(self, outage, error):
        super().__init__(5)
        self.outage, self.error = outage, error

    def step(self, action):
        if len(self.actions) == 7:
            self.outage()
            if self.error is not None:
                raise self.error
        return super().step(action)


@pytest.mark.parametrize(("error", "status"), [(None, 1), (KeyboardInterrupt(), 130)])
def test_a_fleet_whose_service_is_gone_says_so_once_and_does_not_wait_for_each_session(
    service_url, monkeypatch, tmp_path, capsys, error, status
):
    closed, close = [], Session.close
    monkeypatch.setattr(Session, "close", lambda self: (closed.append(self.id), close(self)))
    out = tmp_path / "fleet.json"
    arguments = ["--env", "maze", "--task", "12,7", "--episodes", "2", "--num-envs", "3", "--no-wait", "--json", str(out)]
    there = urlsplit(service_url)
    with ChaosProxy((there.hostname, there.port)) as proxy:
        monkeypatch.setattr("clients.simulator.__main__.connect", lambda options: SkilletClient(proxy.url, retry_for_s=0.2))
        monkeypatch.setattr("clients.simulator.tasks.Domain.make", lambda self, task: CutShort(proxy.outage, error))
        assert main(arguments) == status
    assert len(closed) == 1
    assert capsys.readouterr().err.count("\n") == (1 if status == 1 else 0)
    assert [len(run["episodes"]) for run in json.loads(out.read_text())["runs"]] == [1, 1, 1]


def test_a_session_that_is_refused_on_closing_leaves_none_of_the_others_open(service_url, monkeypatch):
    monkeypatch.setattr("clients.simulator.tasks.Domain.make", lambda self, task: Recorded(3))
    tried, close = [], Session.close

    def refused_first(session):
        tried.append(session.id)
        if len(tried) == 1:
            raise errors.UnknownSession("it was deleted", status=404)
        close(session)

    monkeypatch.setattr(Session, "close", refused_first)
    assert main(["--url", service_url, "--env", "maze", "--task", "12,7", "--episodes", "1", "--num-envs", "3", "--no-wait"]) == 0
    with SkilletClient(service_url) as client:
        assert {info.session_id for info in client.list_sessions()} & set(tried) == {tried[0]}
        close(client.session(tried[0]))


def test_the_longest_wait_for_the_learner_is_that_of_the_whole_fleet(service_url):
    waits = []

    def busy(wait_s=0.0):
        waits.append(wait_s)
        time.sleep(wait_s)  # as the service does
        return FinetuningStatus(
            enabled=True, paused=False, state="running", episodes_completed=2, episodes_learned=1, updates=len(waits), losses={},
            policy_version=0, error=None,
        )  # fmt: skip

    with SkilletClient(service_url) as client:
        sessions = [opened(client, seed) for seed in SEEDS]
        for session in sessions:
            session.finetuning = busy
        envs = [Recorded(3) for _ in SEEDS]
        fleet = Fleet(envs, SessionGroup(client, sessions), SEEDS, Display(Console(quiet=True), 9))
        assert len(list(fleet.rounds(3, max_wait_s=0.2))) == 3
        for env, session in zip(envs, sessions, strict=True):
            env.close()
            session.close()
    assert sum(waits) <= 2 * 0.2
    assert len(waits) >= 2 * len(SEEDS), "each is asked, also when no time is left"


@pytest.mark.parametrize("option", ["--plot", "--video"])
def test_pictures_are_of_one_robot(option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--env", "maze", "--task", "12,7", "--episodes", "1", "--num-envs", "2", option, str(tmp_path / "out.png")])
    assert f"--num-envs is for runs without {option}" in capsys.readouterr().err
