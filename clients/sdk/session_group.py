"""Many sessions in one request: for vector environments, and fleets behind one computer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clients.sdk.client import SkilletClient
from clients.sdk.errors import ServiceError, from_problem
from clients.sdk.models import Action, Transition
from clients.sdk.session import Session

Result = Action | ServiceError


class SessionGroup:
    """Up to 256 sessions of one client. Each call names those that take part by their index.

    What one of them is refused is in its result and stops none of the others. A call that raised ConnectionFailed can be made again.
    """

    def __init__(self, client: SkilletClient, sessions: Sequence[Session]) -> None:
        self.sessions = tuple(sessions)
        self._client = client

    def act(self, observations: Mapping[int, Any]) -> dict[int, Result]:
        """`Session.act` of each, by index."""
        bodies = {index: self.sessions[index].act_body(observation) for index, observation in observations.items()}
        return self._call("/v1/act", bodies, Session.acted)

    def step(self, outcomes: Mapping[int, Transition]) -> dict[int, Result]:
        """`Session.step` of each, by index."""
        bodies = {
            index: self.sessions[index].step_body(each.reward, each.next_observation, each.terminated, each.truncated)
            for index, each in outcomes.items()
        }
        return self._call("/v1/step", bodies, Session.stepped)

    def _call(self, path: str, bodies: Mapping[int, dict[str, Any]], take: Callable[[Session, Any], Action]) -> dict[int, Result]:
        items = [{**body, "session_id": self.sessions[index].id} for index, body in bodies.items()]
        results = self._client.call("POST", path, {"items": items})["results"]
        return {
            index: take(self.sessions[index], result["action"])
            if result["problem"] is None
            else _refused(result["status"], result["problem"])
            for index, result in zip(bodies, results, strict=True)
        }


def _refused(status: int, problem: Mapping[str, Any]) -> ServiceError:
    return from_problem(status, problem, None)
