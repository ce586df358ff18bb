"""A session's log: replayed, exported, and looked after from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.policies import Networks
from service.session_log import Acted, read_log
from service.sessions_cli import main, whole_episodes
from service.settings import Settings
from tests.conftest import Driver, state, transition
from tests.service.learners import ready_to_learn, work_off, worker
from tests.tiny_bundle import make_tiny_bundle
from training.contract.bundle import Bundle


@pytest.fixture
def lived(api: TestClient, settings: Settings, tiny_networks: Networks) -> Driver:
    """A session that has explored, adapted and been fine-tuned, and was acted with by every phase."""
    driver, learner = ready_to_learn(api), worker(settings, tiny_networks)
    driver.run_episode(final_reward=1.0)
    for _ in range(3):
        work_off(learner)
        driver.run_episode(final_reward=0.5)
    return driver


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SKILLET_REDIS_URL", str(settings.redis_url))

    def run(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_a_replay_against_the_same_bundle_is_identical_to_the_bit(lived: Driver, command, tiny_bundle: Bundle) -> None:
    code, printed = command("replay", lived.session["session_id"], "--bundle", str(tiny_bundle.path))
    assert "35 actions replayed, 35 identical, 0 differ; 0 skills" in printed
    assert code == 0


def test_a_replay_tells_which_conditioning_episodes_kept_to_the_task_prior(
    api: TestClient, settings: Settings, tiny_networks: Networks, command, tiny_bundle: Bundle
) -> None:
    driver = Driver(api, conditioning_episodes=4, exploration="alternating")
    acted = [driver.run_episode(final_reward=1.0) for _ in range(6)]
    assert [{reply["task_version"] > 0 for reply in replies} for replies in acted[:4]] == [{False}, {True}, {False}, {True}]
    code, printed = command("replay", driver.session["session_id"], "--bundle", str(tiny_bundle.path))
    assert "42 actions replayed, 42 identical, 0 differ" in printed
    assert code == 0


def test_a_replay_against_another_bundle_tells_where_the_actions_differ(lived: Driver, command, tmp_path: Path) -> None:
    other = make_tiny_bundle(tmp_path / "other", seed=5)
    code, printed = command("replay", lived.session["session_id"], "--bundle", str(other.path))
    assert code == 1
    assert "35 actions replayed, 0 identical, 35 differ" in printed
    assert "episode 0 step 0: by up to" in printed


def test_a_version_whose_weights_are_gone_is_taken_from_the_log(lived: Driver, command, tiny_bundle: Bundle, api: TestClient) -> None:
    session_id = lived.session["session_id"]
    store = api.app.state.parts.store
    store.redis.delete(store.load(session_id).keys.weights)
    code, printed = command("replay", session_id, "--bundle", str(tiny_bundle.path))
    assert "35 actions replayed, 35 identical, 0 differ" in printed
    assert "0 skills" not in printed
    assert code == 0


def test_the_log_has_every_action_and_expires_with_its_session(lived: Driver, api: TestClient) -> None:
    store = api.app.state.parts.store
    keys = store.load(lived.session["session_id"]).keys
    acted = [event for event in read_log(store.redis, keys) if isinstance(event, Acted)]
    assert [event.step for event in acted] == [*range(7)] * 5
    assert 0 < store.redis.pttl(keys.log) <= store.redis.pttl(keys.session) + 1000


def test_only_whole_episodes_are_exported_with_late_rewards_in_place(api: TestClient) -> None:
    driver = Driver(api)
    driver.start()
    for step in range(3):
        driver.act(0, step, state(0, step))
    late = [transition(0, step, state(0, step + 1), reward=None if step == 1 else 1.0, terminated=step == 2) for step in (2, 0, 1)]
    driver.ok(driver.post("transitions", transitions=late))
    driver.ok(driver.post("rewards", rewards=[{"episode": 0, "step": 1, "reward": 5.0}]))
    driver.start()
    driver.act(1, 0, state(1, 0))
    driver.act(1, 1, state(1, 1))
    driver.ok(driver.post("transitions", transitions=[transition(1, 1, state(1, 2))]))  # step 0 never comes
    driver.start()
    driver.act(2, 0, state(2, 0))
    driver.step(2, 0, state(2, 1), reward=2.0)
    store = api.app.state.parts.store
    episodes = whole_episodes(read_log(store.redis, store.load(driver.session["session_id"]).keys))
    assert [episode["rewards"].tolist() for episode in episodes] == [[1.0, 5.0, 1.0], [2.0]]
    np.testing.assert_array_equal(episodes[0]["observations"], np.array([state(0, step) for step in range(4)], np.float32))
    assert (episodes[0]["terminations"][-1], episodes[0]["truncations"][-1]) == (True, False)
    assert (episodes[1]["terminations"][-1], episodes[1]["truncations"][-1]) == (False, True)


def test_an_export_is_read_back_as_offline_data(lived: Driver, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.data import load_episodes

    monkeypatch.setenv("MINARI_DATASETS_PATH", "")  # as unset, and put back afterwards
    monkeypatch.chdir(tmp_path)
    code, printed = command("export", lived.session["session_id"], "--dataset", "robots/night-v0")
    assert (code, printed) == (0, f"5 episodes, 35 steps in {tmp_path}/data/minari/robots/night-v0\n")
    assert [len(episode) for episode in load_episodes("robots/night-v0")] == [7] * 5  # where training looks for it


def test_an_export_that_cannot_be_written_says_why_in_one_line_and_leaves_nothing(
    lived: Driver, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "kept"))
    for dataset in ("night", "night-v", "n/x-v0", "../night-v0", "/night-v0", ""):
        code, printed = command("export", lived.session["session_id"], "--dataset", dataset)
        assert (code, printed.count("\n")) == (2, 1), printed
        assert "is no Minari id" in printed
    assert not (tmp_path / "kept").exists()
    assert command("export", lived.session["session_id"], "--dataset", "night-v0")[0] == 0
    code, printed = command("export", lived.session["session_id"], "--dataset", "night-v0")
    assert (code, printed) == (2, f"skillet: {tmp_path}/kept/night-v0 is there already: choose another name or version\n")


def test_sessions_are_listed_shown_and_deleted(lived: Driver, command, api: TestClient) -> None:
    session_id = lived.session["session_id"]
    code, printed = command("ls")
    assert (code, printed.count("\n")) == (0, 1)
    assert session_id in printed
    code, printed = command("show", session_id)
    told = json.loads(printed)
    assert told["session"]["episodes_completed"] == 5
    assert told["policy"]["history"][0]["event"] == "published"
    assert command("delete", session_id) == (0, "")
    assert api.get(lived.path).status_code == 410
    code, printed = command("show", session_id)
    assert (code, printed.count("\n")) == (2, 1)
    assert "was closed" in printed


def test_the_command_finds_the_sessions_of_a_service_that_does_not_run(tiny_bundle: Bundle, tmp_path: Path, capsys, monkeypatch) -> None:
    from tests.service.running import Remote, RunningService

    monkeypatch.delenv("SKILLET_REDIS_URL", raising=False)
    with RunningService(tiny_bundle.path, tmp_path, "--no-learner") as service:
        driver = Driver(Remote(service))  # type: ignore[arg-type]
        driver.run_episode()
        assert main(["--data-dir", str(tmp_path), "ls"]) == 0
        assert service.stop() == 0
    assert main(["--data-dir", str(tmp_path), "ls"]) == 0
    assert capsys.readouterr().out.count(driver.session["session_id"]) == 2
    assert main(["--data-dir", str(tmp_path / "nowhere"), "ls"]) == 2
