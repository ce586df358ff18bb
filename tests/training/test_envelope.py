import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.training.test_bundle import write as write_bundle
from tests.training.tiny import TINY_SPEC, A, S
from training.contract.bundle import Bundle
from training.contract.envelope import ACTION_LIMITED, CHANGE_LIMITED, Guard
from training.contract.errors import BundleCorrupt
from training.data import Episode
from training.envelope import CHANGE_QUANTILE, MARGIN, learn_envelope


def episodes(count=3, length=50, seed=0):
    rng = np.random.default_rng(seed)
    actions = [np.cumsum(rng.uniform(-0.05, 0.05, (length, A)), 0).clip(-0.4, 0.3).astype(np.float32) for _ in range(count)]
    return [Episode(rng.uniform(-2, 5, (length + 1, S)).astype(np.float32), action) for action in actions]


@pytest.fixture
def envelope():
    return learn_envelope(episodes(), TINY_SPEC)


def test_the_ranges_are_those_of_the_data_with_a_margin(envelope):
    found = episodes()
    actions, states = np.concatenate([e.actions for e in found]), np.concatenate([e.observations for e in found])
    span = actions.max(0).astype(float) - actions.min(0)
    np.testing.assert_allclose(envelope.action_low, actions.min(0) - MARGIN * span, rtol=1e-6)
    np.testing.assert_allclose(envelope.action_high, actions.max(0) + MARGIN * span, rtol=1e-6)
    span = states.max(0).astype(float) - states.min(0)
    np.testing.assert_allclose(envelope.observation_low, states.min(0) - MARGIN * span, rtol=1e-6)
    np.testing.assert_allclose(envelope.refused_high, states.max(0) + (MARGIN + 10) * span, rtol=1e-6)


def test_the_change_is_the_usual_one_within_an_episode_and_not_between_two(envelope):
    found = episodes()
    inside = np.concatenate([np.abs(np.diff(e.actions, axis=0)) for e in found])
    np.testing.assert_allclose(envelope.action_change, np.quantile(inside, CHANGE_QUANTILE, axis=0) * (1 + MARGIN), rtol=1e-5)
    jump = [Episode(e.observations, e.actions + offset) for e, offset in zip(found, (0, 0.1, 0.2), strict=True)]
    np.testing.assert_allclose(learn_envelope(jump, TINY_SPEC).action_change, envelope.action_change, rtol=1e-5)


def test_actions_stay_inside_the_limits_of_the_spec_however_wide_the_data_are():
    wide = [Episode(e.observations, e.actions * 100) for e in episodes()]
    found = learn_envelope(wide, TINY_SPEC)
    assert found.action_low == TINY_SPEC.action.low
    assert found.action_high == TINY_SPEC.action.high


def test_entries_that_never_change_get_a_range_and_no_limit_on_change_that_would_freeze_them():
    still = [Episode(np.ones_like(e.observations), np.zeros_like(e.actions)) for e in episodes()]
    found = learn_envelope(still, TINY_SPEC)
    assert all(change > 0 for change in found.action_change)
    assert all(low < 1 < high for low, high in zip(found.observation_low, found.observation_high, strict=True))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "got none"),
        ([Episode(np.zeros((3, S + 1), np.float32), np.zeros((2, A), np.float32))], "vectors of 4 entries"),
        ([Episode(np.full((3, S), np.nan, np.float32), np.zeros((2, A), np.float32))], "finite"),
    ],
)
def test_data_that_cannot_give_an_envelope_are_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        learn_envelope(broken, TINY_SPEC)


def test_a_bundle_carries_its_envelope_and_its_digest_covers_it(tmp_path, envelope):
    plain = write_bundle(tmp_path / "plain")
    own = write_bundle(tmp_path / "own", envelope=envelope)
    assert Bundle.load(own.path).manifest.limits == envelope
    assert own.manifest.digest != plain.manifest.digest


def test_a_bundle_without_an_envelope_has_the_limits_of_its_spec(tmp_path):
    limits = Bundle.load(write_bundle(tmp_path / "plain").path).manifest.limits
    assert (limits.action_low, limits.action_high) == (TINY_SPEC.action.low, TINY_SPEC.action.high)
    assert (limits.observation_low, limits.observation_high) == (TINY_SPEC.observation.low, TINY_SPEC.observation.high)
    assert Guard(limits).refused(np.full(S, 1e30, np.float32)) is None


@pytest.mark.parametrize(("name", "format_version", "digest"), [("maze", 4, "05563a59dffe"), ("kitchen", 4, "477ba0b2cf52")])
def test_the_committed_bundles_keep_their_digest_and_carry_an_envelope(name, format_version, digest):
    manifest = Bundle.load(f"bundles/{name}").manifest
    assert manifest.format_version == format_version
    assert manifest.envelope is not None
    assert manifest.digest.startswith(digest)


@pytest.mark.parametrize(
    "changed",
    [
        {"action_low": (-2.0,) * A},  # leaves the spec's limits
        {"action_low": (math.nan,) * A},
        {"action_change": (0.0,) * A},
        {"action_change": (math.nan,) * A},
        {"observation_low": (9.0,) * S},
        {"refused_high": (0.0,) * S},
        {"observation_low": (-1.0,) * (S + 1)},
    ],
)
def test_an_envelope_that_could_not_hold_is_no_bundle(tmp_path, envelope, changed):
    from tests.training.test_bundle import edit_manifest

    path = write_bundle(tmp_path / "own", envelope=envelope).path
    edit_manifest(path, envelope=envelope.model_dump(mode="json") | changed)
    with pytest.raises(BundleCorrupt, match="does not fit the bundle format"):
        Bundle.load(path)


NUMBERS = arrays.arrays(np.float32, A, elements=st.floats(-1e6, 1e6, width=32))


@given(actions=st.lists(NUMBERS, min_size=1, max_size=12))
def test_no_sequence_of_actions_leaves_the_envelope(actions):
    limits = learn_envelope(episodes(), TINY_SPEC)
    guard, previous = Guard(limits), None
    for action in actions:
        held, flags = guard.limit(action, previous)
        assert (held >= np.float32(limits.action_low)).all()
        assert (held <= np.float32(limits.action_high)).all()
        if previous is not None:
            assert (np.abs(held - previous) <= np.float32(limits.action_change) + 1e-6).all()
        assert bool(flags) == bool((held != action).any())
        previous = held


def test_the_flags_say_which_limit_held(envelope):
    guard = Guard(envelope)
    near = np.zeros(A, np.float32)
    assert guard.limit(near, None) == (pytest.approx(near), ())
    assert guard.limit(np.full(A, 9.0, np.float32), None)[1] == (ACTION_LIMITED,)
    assert guard.limit(np.asarray(envelope.action_high, np.float32), near)[1] == (CHANGE_LIMITED,)


def test_an_action_that_is_not_finite_has_no_safe_neighbour(envelope):
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite"):
            Guard(envelope).limit(np.array([0.0, bad], np.float32), None)


def test_observations_are_flagged_outside_the_range_and_refused_wildly_outside(envelope):
    guard, inside = Guard(envelope), np.zeros(S, np.float32)
    assert (guard.outside(inside), guard.refused(inside)) == ([], None)
    odd = inside.copy()
    odd[2] = 8.0
    assert (guard.outside(odd), guard.refused(odd)) == ([2], None)
    odd[2] = 1000.0  # millimetres for metres
    assert guard.refused(odd) == 2
