"""The outage ladder against a real service in a process of its own, through a proxy that delays, silences, cuts and corrupts."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from clients.sdk import ControlLoop, EpisodeState, OnnxDecoder, OutageLadder, SkilletClient, errors
from service.app import create_app
from tests.clients.chaos_proxy import ChaosProxy, Weather
from tests.service.running import RunningService
from tests.tiny_bundle import with_envelope
from training.contract.envelope import Envelope

LIMITS = Envelope(
    action_low=(-0.9, -0.9),
    action_high=(0.9, 0.9),
    action_change=(0.05, 0.05),
    observation_low=(-9.0,) * 4,
    observation_high=(9.0,) * 4,
    refused_low=(-90.0,) * 4,
    refused_high=(90.0,) * 4,
    source="a test",
)
DEADLINE_S = 0.4
SLACK_S = 0.3  # of a machine that is busy with other things
STOP = [0.0, 0.0]


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory) -> Iterator[RunningService]:
    bundle = with_envelope(tiny_bundle, tmp_path_factory.mktemp("guarded") / "tiny", LIMITS)
    with RunningService(bundle.path, tmp_path_factory.mktemp("data"), "--no-learner") as running:
        yield running


@pytest.fixture
def proxy(service) -> Iterator[ChaosProxy]:
    with ChaosProxy(("127.0.0.1", service.pool.port)) as made:
        yield made


@pytest.fixture
def client(proxy) -> Iterator[SkilletClient]:
    with SkilletClient(proxy.url, timeout_s=1.0) as made:
        made.bundles()
        yield made


def observation(step: int) -> np.ndarray:
    return np.array([0.1 * step, -0.05 * step, 0.25, 0.5], np.float32)


def undisturbed(client: SkilletClient, steps: int) -> tuple[list[np.ndarray], object]:
    """Actions of a session that nothing happens to, and its posterior."""
    with client.open_session(seed=7) as session:
        session.start_episode()
        actions = [session.act(observation(0)).action]
        actions += [session.step(0.0, observation(step + 1), step == steps - 1, False).action for step in range(steps)]
        return actions[:-1], session.task()


class Run:
    """A control loop that is driven on one clock: every command with what it took."""

    def __init__(self, loop: ControlLoop):
        self.loop, self.commands, self.took_s, self.tick = loop, [], [], 0
        self._add(lambda: loop.start_episode(observation(0)), count_time=False)

    def step(self, count: int = 1, *, ends: bool = False):
        for _ in range(count):
            self.tick += 1
            self._add(lambda: self.loop.step(0.0, observation(self.tick), ends, False))
        return self.commands[-1]

    def _add(self, call, *, count_time: bool = True):
        began = time.monotonic()
        self.commands.append(call())
        if count_time:
            self.took_s.append(time.monotonic() - began)

    @property
    def sources(self) -> list[str]:
        return [command.source for command in self.commands]

    def check(self) -> None:
        """What must hold whatever the network does."""
        actions = np.array([command.action for command in self.commands])
        assert np.isfinite(actions).all()
        assert (np.abs(actions) <= 0.9).all()
        assert max(self.took_s, default=0) < DEADLINE_S + SLACK_S


def drive(client: SkilletClient, ladder: OutageLadder, **options) -> tuple[Run, ControlLoop]:
    session = client.open_session(seed=7, share_skills=True)
    loop = ControlLoop(session, ladder, deadline_s=DEADLINE_S, decoder=OnnxDecoder.download(client, "tiny"), **options)
    return Run(loop), loop


def test_without_an_outage_the_loop_commands_what_the_session_acts(client):
    expected, posterior = undisturbed(client, 12)
    run, loop = drive(client, OutageLadder(STOP))
    with loop:
        run.step(11)
        assert run.step(ends=True).episode_over
        with pytest.raises(EpisodeState):
            run.step()
    assert run.sources == ["service"] * 13
    np.testing.assert_array_equal([command.action for command in run.commands[:-1]], expected)
    np.testing.assert_array_equal(loop._session.task().mean, posterior.mean)
    run.check()


def test_a_skill_is_finished_alone_and_what_was_done_is_reported_afterwards(client, proxy):
    expected, posterior = undisturbed(client, 12)
    run, loop = drive(client, OutageLadder(STOP, finish_skill_s=60.0))
    with loop:
        run.step(1)
        proxy.outage()
        run.step(2)  # steps 2 and 3 of the first skill, which has five
        proxy.clear()
        run.step(8)
        assert run.step(ends=True).episode_over
        deadline = time.monotonic() + 20
        while (info := loop._session.info()).episodes_completed == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert run.sources[:4] == ["service", "service", "skill", "skill"]
    assert set(run.sources[5:]) <= {"service", "skill"}
    np.testing.assert_array_equal([command.action for command in run.commands[:-1]], expected)
    assert (loop.counts.unreported_steps, loop.counts.episodes_broken, info.gaps) == (0, 0, ())
    np.testing.assert_array_equal(loop._session.task().mean, posterior.mean)
    run.check()


def test_the_ladder_goes_from_skill_to_hold_to_stop_inside_the_envelope_and_stays_there(client, proxy):
    run, loop = drive(client, OutageLadder(STOP, finish_skill_s=60.0, hold_s=5 * DEADLINE_S, hold_action=[0.2, 0.2]))
    with loop:
        run.step(1)
        proxy.outage()
        began = time.monotonic()
        while run.step().source != "stop":
            assert time.monotonic() - began < 60 * DEADLINE_S
        run.step(2)
        proxy.clear()
        assert run.step(2).source == "stop"  # a robot that was stopped does not start again by itself
        rungs = [source for source, before in zip(run.sources[2:], run.sources[1:], strict=False) if source != before]
        assert rungs == ["skill", "hold", "stop"]
        assert run.sources.count("skill") == 3  # to the end of the skill, no further
        run.check()
        actions = np.array([command.action for command in run.commands])
        assert (np.abs(np.diff(actions, axis=0)) <= 0.05 + 1e-6).all()
        assert loop.start_episode(observation(0)).source == "service"


def test_when_the_service_comes_back_while_holding_another_episode_begins(client, proxy):
    run, loop = drive(client, OutageLadder(STOP, hold_s=60.0))
    with loop:
        run.step(3)
        proxy.outage()
        held = run.step(3)
        assert held.source == "hold"
        np.testing.assert_array_equal(held.action, run.commands[3].action)
        proxy.clear()
        began = time.monotonic()
        while not run.step().new_episode:
            assert time.monotonic() - began < 30
        run.step(2)
        assert run.sources[-3:] == ["service"] * 3
        info = loop._session.info()
    assert loop.counts.episodes_broken == 1
    assert 1 <= info.episode < 10  # one more for each first action that was too far away from where the robot was by then
    assert loop.counts.unreported_steps > 0
    assert info.step == 3
    run.check()


def test_a_moving_robot_approaches_the_first_action_of_the_episode_after_an_outage(client, proxy):
    run, loop = drive(client, OutageLadder(STOP, hold_s=60.0, hold_action=[0.9, -0.9]))
    with loop:
        run.step(1)
        proxy.outage()
        while np.abs(run.step().action - [0.9, -0.9]).max() > 1e-6:
            assert len(run.commands) < 200
        proxy.clear()
        while not run.step().new_episode:
            assert len(run.commands) < 400
        run.step(2)
    actions = np.array([command.action for command in run.commands])
    assert np.abs(np.diff(actions, axis=0)).max() <= 0.05 + 1e-5
    assert run.sources[-3:] == ["service"] * 3
    assert np.abs(actions[-3] - [0.9, -0.9]).max() > 0.5  # it had a way to go
    run.check()


def test_a_link_that_damages_requests_does_not_end_the_loop(client, proxy):
    run, loop = drive(client, OutageLadder(STOP, finish_skill_s=60.0, hold_s=60.0))
    with loop:
        proxy.weather = Weather(corrupt=0.2)
        while proxy.tally.corrupted < 20:
            run.step()
        proxy.clear()
        began = time.monotonic()
        while run.step().source != "service":
            assert time.monotonic() - began < 30
    run.check()


def test_a_service_that_is_silent_or_slow_never_holds_a_command_up(client, proxy):
    run, loop = drive(client, OutageLadder(STOP, finish_skill_s=60.0, hold_s=60.0))
    with loop:
        run.step(2)
        proxy.weather = Weather(silent=True)
        run.step(2)
        proxy.cut_all()
        proxy.weather = Weather(delay_s=DEADLINE_S)
        run.step(4)
        proxy.clear()
        began = time.monotonic()
        while run.step().source != "service":
            assert time.monotonic() - began < 30
    assert proxy.tally.silenced > 0
    assert proxy.tally.delayed > 0
    run.check()


def test_what_the_worker_fails_with_is_raised_and_not_taken_for_an_outage(client, monkeypatch):
    def fails(*arguments, **options):
        raise ZeroDivisionError("a fault in the SDK")

    run, loop = drive(client, OutageLadder(STOP, hold_s=60.0))
    with loop:
        run.step(2)
        monkeypatch.setattr(loop._session, "step", fails)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run.step()
        assert loop._thread.is_alive()


def test_no_damaged_number_reaches_the_robot(client, proxy):
    expected, posterior = undisturbed(client, 60)
    session = client.open_session(seed=7)
    session.start_episode()
    proxy.weather = Weather(corrupt=0.15, cut=0.1)
    actions = [session.act(observation(0)).action]
    actions += [session.step(0.0, observation(step + 1), step == 59, False).action for step in range(60)]
    proxy.clear()
    np.testing.assert_array_equal(actions[:-1], expected)
    np.testing.assert_array_equal(session.task().mean, posterior.mean)
    assert proxy.tally.corrupted > 10
    assert proxy.tally.cut > 5


def test_an_action_that_is_not_finite_or_of_another_length_is_never_returned(api, monkeypatch):
    from tests.clients.in_process import InProcess

    session = SkilletClient(transport=InProcess(api)).open_session()
    session.start_episode()
    call = session._client.call
    for bad in ([None, 0.0], [0.0], [0.0, float("inf")], [0.0, 0.0, 0.0]):
        monkeypatch.setattr(session._client, "call", lambda *a, bad=bad, **o: {**call(*a, **o), "action": bad})
        with pytest.raises(errors.UnsafeAction):
            session.act(np.zeros(4))


def test_the_sdk_holds_what_a_service_without_the_envelope_lets_through(settings, tiny_bundle, tmp_path):
    from fastapi.testclient import TestClient

    from tests.clients.in_process import InProcess

    bundle = with_envelope(tiny_bundle, tmp_path / "tiny", LIMITS.model_copy(update={"action_high": (0.001, 0.001)}))
    app = create_app(settings.model_copy(update={"bundles": (bundle.path,)}))
    networks = app.state.parts.bundles["tiny"]
    with TestClient(app) as api:
        client = SkilletClient(transport=InProcess(api))
        session = client.open_session(seed=7)
        networks.guard.limit = lambda action, previous: (np.ones(2, np.float32), ())  # a service whose guard fails
        session.start_episode()
        assert session.act(np.zeros(4)).action.tolist() == pytest.approx([0.001, 0.001])
        assert session.guard.limited == 1
        unguarded = SkilletClient(transport=InProcess(api), guards_actions=False).open_session(seed=7)
        unguarded.start_episode()
        assert unguarded.act(np.zeros(4)).action.tolist() == [1.0, 1.0]


def test_an_observation_wildly_outside_is_not_sent(client):
    with client.open_session() as session:
        session.start_episode()
        with pytest.raises(errors.InvalidObservation, match="far from anything"):
            session.act(np.array([0.0, 1000.0, 0.0, 0.0]))
