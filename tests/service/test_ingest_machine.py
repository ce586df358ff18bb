"""Ingest against a simple model, by Hypothesis: acts, outcomes and rewards in whatever order, twice, late, out of turn or never.

The model knows which outcomes came, not how the service keeps them: an outcome is stored once all before it are there, held until then.
"""

from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.conftest import Driver, state, transition

WINDOW, HORIZON, MOST_STEPS = 4, 5, 14
steps = st.integers(0, MOST_STEPS)


@dataclass
class Episode:
    """What was told of one episode. ``rewards`` holds None for one that is to follow; ``last`` is the step whose outcome ends it."""

    number: int
    acted: int = 0
    rewards: dict[int, float | None] = field(default_factory=dict)
    last: int | None = None
    counted: bool = False
    ended: dict[str, Any] | None = None  # by a client, and what it was told then

    @property
    def first_missing(self) -> int:
        """The first step without an outcome."""
        return next(step for step in range(MOST_STEPS + 3) if step not in self.rewards)

    @property
    def over(self) -> bool:
        """Whether every outcome up to the end is there, or a client has ended the episode."""
        return self.ended is not None or (self.last is not None and self.first_missing > self.last)

    @property
    def pending(self) -> list[int]:
        """Steps whose reward is to follow."""
        return self.unrewarded_of(sorted(self.rewards) if self.ended is None else self.kept)

    @property
    def gaps(self) -> list[int]:
        """Acted steps without an outcome."""
        acted = 0 if self.ended is not None else self.acted if self.last is None else self.last
        return [step for step in range(acted) if step not in self.rewards]

    @property
    def kept(self) -> list[int]:
        """What an end now would keep: of each skill its outcomes up to its first gap."""
        steps = []
        for first in range(0, MOST_STEPS + 1, HORIZON):
            steps += list(takewhile(lambda step: step in self.rewards, range(first, first + HORIZON)))
        return steps

    @property
    def earned(self) -> float:
        """The return of what is kept."""
        return sum(self.rewards[step] or 0.0 for step in self.kept)

    def unrewarded_of(self, steps: list[int]) -> list[int]:
        """Those of ``steps`` whose reward is to follow."""
        return [step for step in steps if self.rewards[step] is None]

    def end(self) -> dict[str, Any] | None:
        """What an end tells that a client asks for; noted."""
        if not self.over:
            kept = self.kept
            discarded = sorted(set(self.rewards) - set(kept))
            self.ended = {"episode": self.number, "steps": len(kept), "gaps": self.gaps, "discarded": discarded}
        missing = self.unrewarded_of(self.kept)
        if self.ended is None and not missing:
            return None
        plain = {"episode": self.number, "steps": len(self.kept), "gaps": [], "discarded": []}
        return {**(self.ended or plain), "missing_rewards": missing}

    def place(self, step: int, *, ends: bool, late: bool) -> tuple[str, str | None]:
        """What becomes of an outcome; noted."""
        missing = self.first_missing
        if step in self.rewards and (self.ended is None or step in self.kept):
            return "duplicate", None
        if self.over or (self.last is not None and step > self.last):
            return "refused", "no_open_episode"
        if step >= self.acted:
            return "refused", "step_not_acted"
        if step - missing >= WINDOW or (ends and any(other > step for other in self.rewards)):
            return "refused", "transition_out_of_order"
        self.rewards[step] = None if late else reward_of(step)
        if ends:
            self.last = step
        return ("held" if step > missing else "stored"), None

    def place_reward(self, step: int) -> str:
        """What becomes of a reward; noted."""
        if step not in (self.rewards if self.ended is None else self.kept):
            return "refused"
        if self.rewards[step] is not None:
            return "duplicate"
        self.rewards[step] = reward_of(step)
        return "stored"


class Ingest(RuleBasedStateMachine):
    """One session."""

    api: TestClient

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(self.api, conditioning_episodes=1000)
        self.returns: list[float] = []  # of the episodes that count as completed
        self.episode = Episode(self.driver.start()["episode"])

    @precondition(lambda self: self.episode.acted <= MOST_STEPS)
    @rule(count=st.integers(1, 4))
    def act(self, count: int) -> None:
        episode = self.episode
        for _ in range(min(count, MOST_STEPS + 1 - episode.acted)):
            reply = self.driver.post("act", episode=episode.number, step=episode.acted, observation=state(episode.number, episode.acted))
            if episode.last is not None or episode.over:
                assert (reply.status_code, reply.json()["code"]) == (409, "no_open_episode")
                return
            assert reply.status_code == 200, reply.text
            episode.acted += 1

    @rule(offered=st.lists(st.tuples(steps, st.booleans(), st.sampled_from((False, False, False, True))), min_size=1, max_size=5))
    def report(self, offered: list[tuple[int, bool, bool]]) -> None:
        """Outcomes of some steps, each with its reward or without, and perhaps as the episode's end."""
        self.send(offered)

    @precondition(lambda self: self.episode.acted > 0)
    @rule(order=st.randoms(use_true_random=False), ends=st.booleans())
    def report_all_in_some_order(self, order: Any, ends: bool) -> None:
        newest = self.episode.acted - 1
        offered = [(step, False, ends and step == newest) for step in range(self.episode.acted)]
        order.shuffle(offered)
        self.send(offered)

    def send(self, offered: list[tuple[int, bool, bool]]) -> None:
        episode = self.episode
        items, expected = [], []
        for step, late, wanted in offered:
            ends = step == episode.last if step in episode.rewards else wanted  # a repetition is no contradiction
            outcome = transition(episode.number, step, state(episode.number, step + 1), terminated=ends)
            items.append({**outcome, "reward": None if late else reward_of(step)})
            expected.append(episode.place(step, ends=ends, late=late))
        reply = self.driver.post("transitions", transitions=items)
        if all(status == "refused" for status, _ in expected):
            assert (reply.status_code, reply.json()["code"]) == (409, expected[0][1]), reply.text
            return
        assert reply.status_code == 200, reply.text
        body = reply.json()
        assert [(each["status"], each["code"]) for each in body["results"]] == expected
        assert body["episode_over"] == episode.over
        assert body["accepted"] == sum(status in ("stored", "held") for status, _ in expected)
        self.count()

    @rule(offered=st.lists(steps, min_size=1, max_size=4))
    def reward(self, offered: list[int]) -> None:
        episode = self.episode
        expected = [episode.place_reward(step) for step in offered]
        rewards = [{"episode": episode.number, "step": step, "reward": reward_of(step)} for step in offered]
        reply = self.driver.post("rewards", rewards=rewards)
        if set(expected) == {"refused"}:
            assert (reply.status_code, reply.json()["code"]) == (409, "step_not_acted"), reply.text
            return
        assert [each["status"] for each in reply.json()["results"]] == expected
        assert reply.json()["pending"] == episode.pending
        self.count()

    @rule(number=st.integers(0, 3))
    def report_of_another_episode(self, number: int) -> None:
        if number != self.episode.number:
            reply = self.driver.post("transitions", transitions=[transition(number, 0, state(number, 1))])
            assert (reply.status_code, reply.json()["code"]) == (409, "wrong_episode")

    @rule()
    def end(self) -> None:
        assert self.driver.ok(self.driver.post("episodes/end"))["ended"] == self.episode.end()
        self.count()

    @rule()
    def start_the_next(self) -> None:
        episode = self.episode
        assert self.driver.start()["ended_previous"] == episode.end()
        if episode.kept and not episode.counted:
            self.returns.append(episode.earned)
        self.episode = Episode(episode.number + 1)

    def count(self) -> None:
        """An episode counts once it is over and no reward is missing."""
        episode = self.episode
        if episode.over and episode.kept and not episode.pending and not episode.counted:
            episode.counted = True
            self.returns.append(episode.earned)

    @invariant()
    def the_session_tells_what_the_model_knows(self) -> None:
        session, episode = self.driver.get(), self.episode
        assert (session["episode"], session["episode_open"], session["step"]) == (episode.number, not episode.over, episode.acted)
        assert (session["gaps"], session["pending_rewards"]) == (episode.gaps, episode.pending)
        assert session["episodes_completed"] == len(self.returns)
        store = self.api.app.state.parts.store  # type: ignore[attr-defined]
        records = store.episodes(store.load(self.driver.session["session_id"]).keys)
        assert [record.episode_return for record in records] == self.returns


def reward_of(step: int) -> float:
    return (step + 1) / 4  # sums of these are exact in float32, in any order


def test_ingest_is_as_the_model_says(api: TestClient) -> None:
    machine = type("Machine", (Ingest,), {"api": api})
    parts = api.app.state.parts  # type: ignore[attr-defined]
    parts.loop.settings = parts.settings.model_copy(update={"reorder_window": WINDOW})
    options = settings(max_examples=25, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=options)
