"""Errors of requests that do not fit where their session stands. The tree is drawn in `service.errors`."""

from service.errors import ServiceError


class Gone(ServiceError):
    """The session was there."""

    status = 410


class SessionClosed(Gone):
    """The session was closed by a client."""

    code, title = "session_closed", "Session closed"


class SessionExpired(Gone):
    """The session did not act or report for its time to live."""

    code, title = "session_expired", "Session expired"


class Conflict(ServiceError):
    """The request does not fit where the session stands."""

    status = 409


class NoOpenEpisode(Conflict):
    """The session has no open episode."""

    code, title = "no_open_episode", "No open episode"


class WrongEpisode(Conflict):
    """The request names another episode than the session's."""

    code, title = "wrong_episode", "Wrong episode"


class WrongStep(Conflict):
    """An action was asked for out of turn."""

    code, title = "wrong_step", "Wrong step"


class StepNotActed(Conflict):
    """The outcome of a step came in that the service never gave an action for."""

    code, title = "step_not_acted", "Step not acted"


class TransitionOutOfOrder(Conflict):
    """A transition skips an earlier step that has none yet."""

    code, title = "transition_out_of_order", "Transition out of order"


class DuplicateTransition(Conflict):
    """Every transition of the request is already stored."""

    code, title = "duplicate_transition", "Duplicate transition"


class DeadlinePassed(Conflict):
    """The client's deadline for the answer has passed."""

    code, title = "deadline_passed", "Deadline passed"


class ConcurrentUpdate(Conflict):
    """Other requests kept changing the session."""

    code, title = "concurrent_update", "Concurrent update"
