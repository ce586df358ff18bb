"""What the endpoints call."""

from dataclasses import dataclass, field

from fastapi import Request

from service.adaptation import Adaptation
from service.deadlines import Deadlines
from service.doors import Doors
from service.errors import UnknownBundle
from service.gate import Waiting
from service.idempotency import CreatedSessions
from service.limits import Bodies, SessionCap
from service.metrics import Metrics
from service.policies import Networks
from service.sessions import SessionStore
from service.settings import Settings
from service.step_loop import StepLoop
from service.tokens import TokenStore
from service.versions import VersionStore


@dataclass(frozen=True)
class Parts:
    """The parts of one API process."""

    settings: Settings
    bundles: dict[str, Networks]
    store: SessionStore
    versions: VersionStore
    created: CreatedSessions
    adaptation: Adaptation
    loop: StepLoop
    deadlines: Deadlines
    metrics: Metrics
    waiting: Waiting
    bodies: Bodies
    tokens: TokenStore
    doors: Doors
    session_cap: SessionCap
    learner_waits: Waiting = field(default_factory=Waiting)  # those of `waiting` that look for a learner's progress again and again


def parts_of(request: Request) -> Parts:
    """The parts of the application that a request came to."""
    parts: Parts = request.app.state.parts
    return parts


def find_bundle(parts: Parts, name: str) -> Networks:
    """The bundle of this name. Raises UnknownBundle."""
    if (found := parts.bundles.get(name)) is None:
        raise UnknownBundle(
            "this service has no bundle of that name",
            expected=sorted(parts.bundles),
            received=name[:64],
            action="Name one of these bundles.",
        )
    return found
