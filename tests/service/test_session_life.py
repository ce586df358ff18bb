"""A session's life against a simple model, by Hypothesis: whatever is asked in whatever order, the service says what the model says."""

from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.keys import SessionKeys
from tests.conftest import state, transition

KEYS = ("one", "two")


@dataclass
class Model:
    """What a session must be."""

    session_id: str
    gone: str | None = None  # the code that every call then gets
    episode: int = -1
    open: bool = False
    acted: int = 0
    outcomes: int = 0
    completed: int = 0
    replies: int = 0


class SessionLife(RuleBasedStateMachine):
    """Opens, drives, closes and lets expire sessions of one service."""

    api: TestClient
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.by_key: dict[str, Model] = {}
        self.api.app.state.parts.store.redis.flushdb()  # type: ignore[attr-defined]
        self.models: list[Model] = []

    @rule(target=sessions, key=st.sampled_from((None, *KEYS)))
    def open(self, key: str | None) -> Model:
        reply = self.api.post("/v1/sessions", json={"conditioning_episodes": 2}, headers={"Idempotency-Key": key} if key else {})
        known = self.by_key.get(key or "")
        if known is not None and known.gone:
            assert (reply.status_code, reply.json()["code"]) == (410, known.gone)
            return known
        assert reply.status_code == 201, reply.text
        if known is not None:
            assert reply.json()["session_id"] == known.session_id
            return known
        model = Model(reply.json()["session_id"])
        assert model.session_id not in {other.session_id for other in self.models}
        self.models.append(model)
        if key:
            self.by_key[key] = model
        return model

    @rule(model=sessions)
    def start_episode(self, model: Model) -> None:
        reply = self.post(model, "episodes")
        if self.alive(model, reply):
            assert reply.status_code == 201
            model.completed += model.open and model.outcomes > 0
            model.episode, model.open, model.acted, model.outcomes = model.episode + 1, True, 0, 0
            assert reply.json()["episode"] == model.episode

    @rule(model=sessions, ahead=st.sampled_from((0, 0, 0, 1, -1)))
    def act(self, model: Model, ahead: int) -> None:
        step = max(0, model.acted + ahead)
        reply = self.post(model, "act", episode=max(0, model.episode), step=step, observation=state(max(0, model.episode), step))
        if self.alive(model, reply):
            again = step == model.acted - 1  # the newest action is given again, also when its episode is over
            if again or (model.open and step == model.acted):
                assert reply.status_code == 200, reply.text
                assert reply.json()["replayed"] == again
                model.acted += not again
            else:
                assert reply.json()["code"] == ("wrong_step" if model.open else "no_open_episode")

    @rule(model=sessions, last=st.sampled_from((False, False, True)))
    def report_what_was_acted(self, model: Model, last: bool) -> None:
        if not model.open or model.outcomes == model.acted:
            return
        step = model.outcomes
        end = last and step == model.acted - 1
        outcome = transition(model.episode, step, state(model.episode, step + 1), reward=1.0, terminated=end)
        reply = self.post(model, "transitions", transitions=[outcome, outcome])
        if self.alive(model, reply):
            assert reply.status_code == 200, reply.text
            assert [result["status"] for result in reply.json()["results"]] == ["stored", "duplicate"]
            model.outcomes += 1
            self.end(model, end)

    @rule(model=sessions, last=st.sampled_from((False, False, True)))
    def step(self, model: Model, last: bool) -> None:
        if not model.open or model.outcomes != model.acted - 1:
            return
        step = model.outcomes
        outcome = transition(model.episode, step, state(model.episode, step + 1), truncated=last)
        reply = self.post(model, "step", **outcome)
        if self.alive(model, reply):
            assert reply.status_code == 200, reply.text
            assert reply.json()["episode_over"] == last
            model.outcomes += 1
            model.acted += not last
            self.end(model, last)

    @rule(model=sessions)
    def report_what_was_never_acted(self, model: Model) -> None:
        outcome = transition(max(0, model.episode), model.acted + 3, state(0, 0))
        reply = self.post(model, "transitions", transitions=[outcome])
        if self.alive(model, reply):
            assert reply.json()["code"] == ("step_not_acted" if model.open else "no_open_episode")

    @rule(model=sessions)
    def close(self, model: Model) -> None:
        reply = self.api.delete(f"/v1/sessions/{model.session_id}")
        if self.alive(model, reply):
            assert reply.json()["closed"] is True
            model.gone = "session_closed"

    @rule(model=sessions)
    def expire(self, model: Model) -> None:
        if model.gone is None:
            self.api.app.state.parts.store.redis.delete(*SessionKeys(model.session_id).lasting)  # type: ignore[attr-defined]
            model.gone = "session_expired"

    @invariant()
    def the_service_says_what_the_model_says(self) -> None:
        for model in self.models:
            reply = self.api.get(f"/v1/sessions/{model.session_id}")
            if self.alive(model, reply):
                session = reply.json()
                found = (session["episode"], session["episode_open"], session["step"], session["episodes_completed"])
                expected = (None if model.episode < 0 else model.episode, model.open, model.acted, model.completed)
                assert found == expected

    def alive(self, model: Model, reply: Any) -> bool:
        """Whether the session is there; a reply of one that is gone must say so."""
        if model.gone is None:
            assert reply.status_code < 500, reply.text
            return True
        assert (reply.status_code, reply.json()["code"]) == (410, model.gone)
        return False

    def post(self, model: Model, call: str, **body: Any) -> Any:
        return self.api.post(f"/v1/sessions/{model.session_id}/{call}", json=body or None)

    @staticmethod
    def end(model: Model, over: bool) -> None:
        if over:
            model.open, model.completed = False, model.completed + 1


def test_a_sessions_life_is_as_the_model_says(api: TestClient) -> None:
    machine = type("Life", (SessionLife,), {"api": api})
    options = settings(max_examples=15, stateful_step_count=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=options)
