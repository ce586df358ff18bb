"""The SDK over `/v1/stream`, against a running service, on good and bad links."""

import threading

import numpy as np
import pytest

from clients.sdk import SkilletClient, Transition, errors
from tests.clients.chaos_proxy import ChaosProxy, Weather
from tests.clients.sdk.test_against_the_app import observation, run_episode
from tests.clients.servers import http_server, says
from tests.service.running import RunningService


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory):
    with RunningService(tiny_bundle.path, tmp_path_factory.mktemp("data"), "--no-learner") as running:
        yield running


@pytest.fixture
def url(service):
    return f"http://127.0.0.1:{service.pool.port}"


def actions_of(client, episodes=2, steps=7):
    with client.open_session(seed=5, conditioning_episodes=1) as session:
        return [action for _ in range(episodes) for action in run_episode(session, steps)]


def same(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert (left.episode, left.step, left.phase, left.episode_over) == (right.episode, right.step, right.phase, right.episode_over)
        np.testing.assert_array_equal(left.action, right.action)


def test_a_stream_gives_the_actions_that_requests_give_to_the_bit(connect, url):
    same(actions_of(connect(url, stream=True)), actions_of(connect(url)))


def test_a_step_of_numpys_may_be_sent_over_a_stream(connect, url):
    with connect(url, stream=True).open_session(seed=np.int64(5)) as session:
        session.start_episode()
        session.act(observation(0))
        session.post_transitions([Transition(None, observation(1), False, False)])
        assert session.post_rewards({np.int64(0): 1.0}).accepted == 1


@pytest.mark.parametrize("weather", [Weather(cut=0.1), Weather(corrupt=0.05)], ids=["cut", "corrupt"])
def test_on_a_bad_link_nothing_is_lost_and_not_a_bit_is_changed(connect, service, url, weather):
    calm = actions_of(connect(url), episodes=3, steps=20)
    with ChaosProxy(("127.0.0.1", service.pool.port), seed=1) as proxy:
        client = connect(proxy.url, stream=True, timeout_s=2.0)
        client.bundles()
        proxy.weather = weather
        rough = actions_of(client, episodes=3, steps=20)
        proxy.clear()
        assert proxy.tally.cut + proxy.tally.corrupted > 3
    same(rough, calm)


def test_a_step_whose_connection_drops_is_made_good_by_another(connect, service):
    with ChaosProxy(("127.0.0.1", service.pool.port)) as proxy, connect(proxy.url, stream=True).open_session() as session:
        session.start_episode()
        session.act(observation(0))
        proxy.cut_all()
        assert session.step(0.0, observation(1), False, False).step == 1


def test_a_reply_that_comes_after_its_budget_is_not_taken_for_the_next_one(connect, service):
    with ChaosProxy(("127.0.0.1", service.pool.port)) as proxy, connect(proxy.url, stream=True).open_session() as session:
        session.start_episode()
        session.act(observation(0))
        proxy.weather.delay_s = 0.2
        with pytest.raises(errors.RequestTimeout):
            session.step(0.0, observation(1), False, False, budget_s=0.05)
        proxy.clear()
        assert session.step(0.0, observation(1), False, False).step == 1
        assert session.step(0.0, observation(2), False, False).step == 2


def test_a_late_reply_and_the_one_to_its_repetition_may_come_in_one_piece(connect, service):
    with ChaosProxy(("127.0.0.1", service.pool.port)) as proxy:
        session = connect(proxy.url, stream=True, timeout_s=5.0, retry_for_s=0).open_session()
        session.start_episode()
        session.act(observation(0))
        held, has_come = [], threading.Event()

        def hold(data):
            held.append(data)
            has_come.set()
            return b""

        proxy.weather.reply = hold
        with pytest.raises(errors.RequestTimeout):
            session.step(0.0, observation(1), False, False, budget_s=0.05)
        assert has_come.wait(20)
        proxy.weather.reply = lambda data: b"".join((*held, data))
        assert session.step(0.0, observation(1), False, False).step == 1
        proxy.clear()
        assert session.step(0.0, observation(2), False, False).step == 2


def test_a_connection_that_is_closed_with_its_first_reply_is_made_again(connect, service):
    closes = [b"\x88\x02\x03\xf4"]  # 1012: the service restarts

    def closed(data):
        return data + closes.pop() if data[:1] == b"\x82" and closes else data

    with ChaosProxy(("127.0.0.1", service.pool.port)) as proxy, connect(proxy.url, stream=True).open_session() as session:
        proxy.weather.reply = closed
        session.start_episode()
        assert not closes
        assert session.act(observation(0)).step == 0


def test_batches_late_rewards_and_the_end_of_an_episode_go_over_the_stream(connect, url):
    with connect(url, stream=True).open_session() as session:
        session.start_episode()
        for step in range(3):
            session.act(observation(step))
        posted = session.post_transitions([Transition(None, observation(step + 1), False, False) for step in range(2)])
        assert posted.accepted == 2
        assert session.post_rewards({0: 1.0, 1: 0.0}).pending == ()
        ended = session.end_episode()
        assert (ended.steps, ended.gaps) == (2, (2,))
        with pytest.raises(errors.EpisodeState):
            session.act(observation(3))


def test_refusals_are_the_errors_that_requests_raise(connect, url):
    client = connect(url, stream=True)
    session = client.open_session()
    session.start_episode()
    session.act(observation(0))
    session._next_act = 5
    with pytest.raises(errors.WrongStep) as refused:
        session.act(observation(1))
    assert refused.value.expected == 1
    client.session(session.id).close()
    with pytest.raises(errors.SessionClosed):
        session.start_episode()


def test_a_handshake_that_is_damaged_on_its_way_is_made_again(connect, service):
    with ChaosProxy(("127.0.0.1", service.pool.port), seed=2) as proxy:
        client = connect(proxy.url, stream=True, timeout_s=2.0)
        client.bundles()
        proxy.weather = Weather(corrupt=0.2)
        for seed in range(8):
            with client.open_session(seed=seed) as session:
                session.start_episode()
        proxy.clear()
        assert proxy.tally.corrupted > 3


def test_a_service_without_a_stream_is_told_apart(connect):
    info = says(404, {"detail": "Not Found"})
    with http_server(info) as (url, _):
        client = SkilletClient(url, stream=True, retry_for_s=0)
        with pytest.raises(errors.UnexpectedReply, match="opens no stream"):
            client.channel("0" * 32, "/v1/sessions/x").call("act", {})
        client.close()
