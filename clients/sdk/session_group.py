"""Many sessions in one request: for vector environments, and fleets behind one computer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from clients.sdk.client import SkilletClient
from clients.sdk.errors import SkilletError, UnexpectedReply, from_problem
from clients.sdk.models import Action, BatchAnswer, BatchAnswers, Transition, parse
from clients.sdk.session import Session

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")
_Body = dict[str, Any]
Result = Action | SkilletError
"""What a session gets; or what `Session.act` or `Session.step` would have raised: a refusal, a state or an action that does not fit."""


class SessionGroup:
    """Up to 256 sessions of one client. Each call names those that take part by their index.

    What keeps one of them from its action is in its result and stops none of the others: what the service refused; InvalidObservation,
    InvalidRequest and EpisodeState, which are found before anything is sent; and UnsafeAction and UnexpectedReply, of an action that came.
    A call raises what concerns all, such as ConnectionFailed, and can then be made again.
    """

    def __init__(self, client: SkilletClient, sessions: Sequence[Session]) -> None:
        self.sessions = tuple(sessions)
        self._client = client

    def act(self, observations: Mapping[int, Any]) -> dict[int, Result]:
        """`Session.act` of each, by index."""
        return self._call("/v1/act", observations, Session.act_body, Session.acted)

    def step(self, outcomes: Mapping[int, Transition]) -> dict[int, Result]:
        """`Session.step` of each, by index."""
        return self._call("/v1/step", outcomes, _step_body, Session.stepped)

    def _call(
        self, path: str, given: Mapping[int, _Given], write: Callable[[Session, _Given], _Body], take: Callable[[Session, Any], Action]
    ) -> dict[int, Result]:
        bodies = {index: _unless_refused(write, self.sessions[index], each) for index, each in given.items()}
        items = {
            index: {**body, "session_id": self.sessions[index].id} for index, body in bodies.items() if not isinstance(body, SkilletError)
        }
        answers = dict(zip(items, self._answers(path, [*items.values()]), strict=True))
        return {
            index: body if isinstance(body, SkilletError) else _taken(take, self.sessions[index], answers[index])
            for index, body in bodies.items()
        }

    def _answers(self, path: str, items: Sequence[_Body]) -> Sequence[BatchAnswer]:
        if not items:
            return ()
        results = parse(BatchAnswers, self._client.call("POST", path, {"items": items})).results
        if len(results) != len(items):
            raise UnexpectedReply("the reply has not one result for each session", expected=len(items), received=len(results))
        return results


def _step_body(session: Session, outcome: Transition) -> _Body:
    return session.step_body(outcome.reward, outcome.next_observation, outcome.terminated, outcome.truncated)


def _taken(take: Callable[[Session, Any], Action], session: Session, answer: BatchAnswer) -> Result:
    if answer.problem is not None:
        return from_problem(answer.status, answer.problem)
    return _unless_refused(take, session, answer.action)


def _unless_refused(call: Callable[[Session, _Given], _Found], session: Session, given: _Given) -> _Found | SkilletError:
    """What ``call`` returns, or the SkilletError that it raises."""
    try:
        return call(session, given)
    except SkilletError as error:
        return error
