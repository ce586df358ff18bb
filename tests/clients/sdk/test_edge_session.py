"""Split inference against the real application: skills come from the service, actions are decoded here."""

import hashlib

import numpy as np
import pytest
from fastapi.testclient import TestClient

from clients.sdk import EdgeSession, OnnxDecoder, SkilletClient, errors
from service.app import create_app
from service.policies import Networks
from tests.clients.in_process import InProcess
from tests.clients.sdk.test_against_the_app import observation
from tests.tiny_bundle import with_envelope
from training.contract.envelope import Envelope

H = 5
OPTIONS = {"seed": 5, "conditioning_episodes": 1, "share_skills": True, "finetuning": False}


def run(session, steps=23):
    """One episode. Returns its actions."""
    session.start_episode()
    actions = [session.act(observation(0))]
    for step in range(1, steps + 1):
        last = step == steps
        actions.append(session.step(step / 8, observation(step), last, False))
    return actions


def same(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for field in ("episode", "step", "skill_step", "policy_version", "task_version", "phase", "episode_over"):
            assert getattr(left, field) == getattr(right, field), field
        np.testing.assert_array_equal(left.action, right.action)


class Requests(InProcess):
    """Counts requests by their last word, and loses those that the test says."""

    def __init__(self, api):
        super().__init__(api, self._count)
        self.words, self.lose = [], lambda word: None

    def _count(self, path, body):
        self.words.append(path.rpartition("/")[2])
        return self.lose(self.words[-1])


@pytest.fixture
def edge_of():
    """Makes an edge session on an application. Returns it, its transport and its client."""
    opened = []

    def make(api, decoder=None, **options):
        transport = Requests(api)
        client = SkilletClient(transport=transport, **options)
        session = client.open_session(**OPTIONS)
        edge = EdgeSession(session, decoder or OnnxDecoder.download(client, session.bundle.name))
        opened.append(edge)
        transport.words.clear()
        return edge, transport, client

    yield make
    for edge in opened:
        edge.close()


def log_of(api, session_id):
    """What the service has of a session: its context, and its log."""
    store = api.app.state.parts.store
    loaded = store.load(session_id)
    return store.redis.get(loaded.keys.context), b"".join(store.redis.lrange(loaded.keys.log, 0, -1))


def test_it_acts_as_the_service_does_to_the_bit_and_leaves_the_same_behind(api, edge_of):
    edge, _, client = edge_of(api)
    server = client.open_session(**OPTIONS)
    for _ in range(3):
        same(run(edge), run(server))
    edge.flush()
    contexts, logs = zip(*(log_of(api, each.id) for each in (edge.session, server)), strict=True)
    assert contexts[0] == contexts[1]
    assert len(logs[0]) > 1000
    one, other = edge.session.info(), server.info()
    assert (one.context_size, one.episodes_completed, one.task_version) == (
        other.context_size,
        other.episodes_completed,
        other.task_version,
    )


def test_there_is_one_request_for_each_skill(api, edge_of):
    edge, transport, _ = edge_of(api)
    run(edge, steps=5 * H)
    edge.flush()
    assert transport.words == ["episodes", "act", "steps", "steps", "steps", "steps", "steps"]


def test_an_outage_within_a_skill_is_not_noticed_and_one_at_its_end_is_made_good(api, edge_of):
    edge, transport, client = edge_of(api, retry_for_s=0)
    calm = run(client.open_session(**OPTIONS), steps=12)
    edge.start_episode()
    actions = [edge.act(observation(0))]
    transport.lose = lambda word: "request"
    actions += [edge.step(step / 8, observation(step), False, False) for step in range(1, H)]
    for _ in range(3):
        with pytest.raises(errors.ConnectionLost):
            edge.step(H / 8, observation(H), False, False)
    transport.lose = lambda word: None
    actions += [edge.step(step / 8, observation(step), step == 12, False) for step in range(H, 13)]
    same(actions, calm)


def test_a_lost_reply_is_asked_for_again_and_nothing_counts_twice(api, edge_of):
    edge, transport, client = edge_of(api)
    calm = run(client.open_session(**OPTIONS))
    lost = set()

    def every_first(word):
        if word == "steps" and len(transport.words) not in lost:
            lost.add(len(transport.words) + 1)
            return "reply"
        return None

    transport.lose = every_first
    same(run(edge), calm)
    edge.flush()
    assert edge.session.info().context_size == 5
    assert len(lost) == 5


def test_the_end_of_an_episode_is_reported_in_the_background_and_again_if_that_failed(api, edge_of):
    edge, transport, _ = edge_of(api, retry_for_s=0)
    edge.start_episode()
    edge.act(observation(0))
    transport.lose = lambda word: "request"
    assert edge.step(1.0, observation(1), True, False).episode_over
    with pytest.raises(errors.ConnectionLost):
        edge.start_episode()
    transport.lose = lambda word: None
    edge.start_episode()
    info = edge.session.info()
    assert (info.episodes_completed, info.episode) == (1, 1)


def test_outcomes_of_an_episode_that_is_left_open_are_reported_when_the_next_starts(api, edge_of):
    edge, _, _ = edge_of(api)
    edge.start_episode()
    edge.act(observation(0))
    for step in range(1, 4):
        edge.step(0.0, observation(step), False, False)
    assert edge.start_episode().ended_previous.steps == 3


def test_an_episode_can_be_given_up_after_a_lost_reply(api, edge_of):
    edge, transport, _ = edge_of(api, retry_for_s=0)
    edge.start_episode()
    edge.act(observation(0))
    for step in range(1, H):
        edge.step(0.0, observation(step), False, False)
    transport.lose = lambda word: "reply"
    with pytest.raises(errors.ConnectionLost):
        edge.step(0.0, observation(H), False, False)  # all of the skill is reported, and nobody knows
    transport.lose = lambda word: None
    assert edge.start_episode().ended_previous.steps == H
    edge.act(observation(0))


def test_an_end_that_is_refused_is_told_once(api, edge_of):
    edge, _, client = edge_of(api)
    edge.start_episode()
    edge.act(observation(0))
    client.session(edge.session.id).end_episode()  # somebody else
    assert edge.step(1.0, observation(1), True, False).episode_over
    with pytest.raises(errors.Conflict):
        edge.start_episode()
    edge.start_episode()
    edge.act(observation(0))


def test_the_envelope_holds_here_as_it_does_there(settings, tiny_bundle, tmp_path, edge_of):
    narrow = Envelope(
        action_low=(-0.02, -0.5),
        action_high=(0.02, 0.5),
        action_change=(0.001, 0.0005),
        observation_low=(-9.0,) * 4,
        observation_high=(9.0,) * 4,
        refused_low=(-50.0,) * 4,
        refused_high=(50.0,) * 4,
        source="a test",
    )
    networks = Networks(with_envelope(tiny_bundle, tmp_path / "narrow", narrow))
    with TestClient(create_app(settings, {"tiny": networks}), raise_server_exceptions=False) as api:
        edge, _, client = edge_of(api)
        actions = run(edge)
        same(actions, run(client.open_session(**OPTIONS)))
        assert edge.guard.limited > 10
        edge.start_episode()
        edge.act(observation(0))
        with pytest.raises(errors.InvalidObservation, match="far from anything"):
            edge.step(0.0, [99.0, 0.0, 0.0, 0.0], False, False)


def test_an_action_that_is_not_finite_is_not_followed(api, edge_of):
    edge, _, _ = edge_of(api, decoder=lambda state, skill: np.full(2, np.nan, np.float32))
    edge.start_episode()
    edge.act(observation(0))
    with pytest.raises(errors.UnsafeAction):
        edge.step(0.0, observation(1), False, False)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ((float("nan"), [0.0] * 4), errors.InvalidRequest),
        ((0.0, [0.0] * 3), errors.InvalidObservation),
        ((0.0, [0.0, float("inf"), 0.0, 0.0]), errors.InvalidObservation),
        ((0.0, "here"), errors.InvalidObservation),
    ],
)
def test_bad_outcomes_are_refused_at_once_and_without_effect(api, edge_of, outcome, error):
    edge, _, client = edge_of(api)
    calm = run(client.open_session(**OPTIONS), steps=2)
    edge.start_episode()
    actions = [edge.act(observation(0))]
    with pytest.raises(error):
        edge.step(*outcome, False, False)
    actions.append(edge.step(1 / 8, observation(1), False, False))
    same(actions, calm[:2])


def test_calls_out_of_turn_and_sessions_that_do_not_share_skills_are_refused(api, edge_of):
    edge, _, client = edge_of(api)
    with pytest.raises(errors.EpisodeState):
        edge.step(0.0, observation(1), False, False)
    edge.start_episode()
    edge.act(observation(0))
    with pytest.raises(errors.EpisodeState):
        edge.act(observation(0))
    with pytest.raises(errors.InvalidRequest):
        EdgeSession(client.open_session(), edge._decoder)


def test_a_decoder_is_downloaded_once_and_a_damaged_copy_is_replaced(api, tmp_path):
    transport = Requests(api)
    client = SkilletClient(transport=transport)
    OnnxDecoder.download(client, "tiny", cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.stem == hashlib.sha256(kept.read_bytes()).hexdigest()
    OnnxDecoder.download(client, "tiny", cache=tmp_path / "cache")
    assert transport.words == ["tiny", "skill_decoder.onnx", "tiny"]
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    OnnxDecoder.download(client, "tiny", cache=tmp_path / "cache")
    assert kept.read_bytes() == whole


def test_a_decoder_that_is_damaged_on_its_way_is_not_used(api):
    client = SkilletClient(transport=InProcess(api))
    client.fetch = lambda path: b"\x00"
    with pytest.raises(errors.UnexpectedReply, match="damaged"):
        OnnxDecoder.download(client, "tiny")
