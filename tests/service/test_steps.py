"""Several steps in one request, from a robot that decodes its skills itself."""

import pytest

from tests.conftest import Driver, state, transition


def outcomes(first, last, **at_the_end):
    batch = [transition(0, step, state(0, step + 1)) for step in range(first, last + 1)]
    batch[-1] |= at_the_end
    return batch


@pytest.fixture
def begun(driver):
    driver.start()
    driver.act(0, 0, state(0, 0))
    return driver


def test_they_are_as_many_single_steps(api, begun):
    single = Driver(api)
    single.start()
    single.act(0, 0, state(0, 0))
    replies = [single.step(0, step, state(0, step + 1)) for step in range(12)]
    assert begun.ok(begun.post("steps", transitions=outcomes(0, 4))) == replies[4]
    assert begun.ok(begun.post("steps", transitions=outcomes(5, 11))) == replies[11]
    about, other = begun.get(), single.get()
    assert (about["step"], about["context_size"], about["gaps"]) == (other["step"], other["context_size"], other["gaps"])


def test_sent_again_they_have_one_effect_even_with_more_behind_them(begun):
    first = begun.ok(begun.post("steps", transitions=outcomes(0, 4)))
    assert begun.ok(begun.post("steps", transitions=outcomes(0, 4))) == {**first, "replayed": True}
    more = begun.ok(begun.post("steps", transitions=outcomes(0, 8)))
    assert (more["step"], more["replayed"]) == (9, False)
    assert begun.get()["context_size"] == 1


def test_the_last_of_them_may_end_the_episode(begun):
    over = begun.ok(begun.post("steps", transitions=outcomes(0, 6, terminated=True, reward=1.0)))
    assert (over["step"], over["action"], over["episode_over"], over["replayed"]) == (7, None, True, False)
    again = begun.ok(begun.post("steps", transitions=outcomes(0, 6, terminated=True, reward=1.0)))
    assert again == {**over, "replayed": True}
    assert begun.get()["episodes_completed"] == 1


@pytest.mark.parametrize(
    ("batch", "status", "code"),
    [
        ([*outcomes(0, 2), transition(0, 3, [0.0])], 422, "invalid_observation"),
        ([*outcomes(0, 2), transition(0, 3, [1e9, 0.0, 0.0, 1e300])], 422, "invalid_observation"),
        ([*outcomes(0, 2), transition(0, 5, state(0, 6))], 409, "step_not_acted"),
        ([*outcomes(0, 2, terminated=True), transition(0, 3, state(0, 4))], 409, "no_open_episode"),
        ([*outcomes(0, 2), transition(1, 3, state(0, 4))], 409, "wrong_episode"),
        ([], 422, "invalid_request"),
    ],
)
def test_all_of_them_happen_or_none(begun, batch, status, code):
    before = begun.get()
    refused = begun.post("steps", transitions=batch)
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    after = begun.get()
    assert {**after, "expires_at": None} == {**before, "expires_at": None}
