"""Waiting for the learner, and the seeds of a run."""

import time

from clients.sdk import FinetuningStatus
from clients.simulator.run import Patience, has_caught_up, reset_seed


def status(learned, *, completed=7, state="running", enabled=True, paused=False, updates=0):
    return FinetuningStatus(
        enabled=enabled,
        paused=paused,
        state=state,
        episodes_completed=completed,
        episodes_learned=learned,
        updates=updates,
        losses={},
        policy_version=0,
        error=None,
    )


def test_it_asks_until_the_learner_has_seen_every_completed_episode():
    answers, waits = [status(5), status(6), status(7), status(7)], []

    def ask(wait_s):
        waits.append(wait_s)
        return answers.pop(0)

    assert Patience(ask).wait(200.0).episodes_learned == 7
    assert len(answers) == 1
    assert waits == [60.0, 60.0, 60.0], "the service takes at most 60 s at a time"


def test_a_service_that_answers_at_once_is_not_asked_without_end():
    asked = []

    def ask(wait_s):
        asked.append(wait_s)
        return status(5, state="queued")

    began = time.monotonic()
    assert not has_caught_up(Patience(ask).wait(0.5))
    assert time.monotonic() - began < 5
    assert 2 <= len(asked) <= 6


def test_it_gives_up_after_the_bound_and_returns_where_the_learner_stands():
    waits = []

    def ask(wait_s):
        waits.append(wait_s)
        time.sleep(wait_s)  # as the service does
        return status(5)

    assert not has_caught_up(Patience(ask).wait(0.05))
    assert sum(waits) <= 0.06


def test_a_learner_that_did_nothing_all_the_time_is_waited_for_again_only_once_it_does_something():
    done, waits = [0, 0, 1, 1, 2], []

    def ask(wait_s):
        waits.append(wait_s)
        time.sleep(wait_s)
        return status(5, updates=done[patience.times])

    patience = Patience(ask, _seen=(5, 0))
    asked = []
    for patience.times in range(5):
        before = len(waits)
        patience.wait(0.02)
        asked.append(sum(waits[before:]) > 0)
    assert asked == [True, False, False, True, False]


def test_a_learner_that_will_not_go_on_by_itself_is_not_waited_for():
    assert has_caught_up(status(0, enabled=False))
    assert has_caught_up(status(0, paused=True))
    assert has_caught_up(status(0, state="failed"))
    assert has_caught_up(status(0, state="idle"))
    assert not has_caught_up(status(0, state="queued"))


def test_each_episode_of_each_seed_starts_from_its_own_reset_seed():
    seeds = {(seed, episode): reset_seed(seed, episode) for seed in range(5) for episode in range(20)}
    assert len(set(seeds.values())) == 100
    assert reset_seed(3, 4) == seeds[3, 4]
