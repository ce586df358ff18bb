"""Errors of the SDK. Each says what was expected, what came and what to do.

SkilletError
├── ConnectionFailed             no HTTP reply came; `request_sent` says whether the request may have had an effect
│   ├── NothingListening         connection refused, or no such host
│   ├── NotHttp                  something else than an HTTP server answers there
│   ├── TlsMismatch              http:// to a TLS port, https:// to a plain one, or a certificate that is not trusted
│   ├── ConnectionLost           cut before the reply was complete
│   ├── RequestTimeout           no complete reply in time
│   └── DamagedReply             the reply does not fit its digest: the link changes bytes
├── UnsafeAction                 an action that is not finite or has the wrong length came: it must not reach a robot
├── UnexpectedReply              an HTTP reply that this SDK cannot read: not from Skillet, or from another version of it
├── EpisodeState                 the call does not fit where the episode stands; found before anything was sent
├── ItemsRefused                 some items of a batch were refused; the others are stored
└── ServiceError                 the service refused the request (problem+json); nothing was changed
    ├── InvalidRequest           422
    │   ├── IdempotencyKeyReused 422
    │   ├── DamagedRequest       400; what was no HTTP at all any more: MalformedRequest
    │   └── InvalidObservation   422, or found before anything was sent: ObservationOutOfRange
    ├── Unauthorized             401: no token, or one that is not valid
    ├── Forbidden                403: the token's role may not do this
    ├── TooMany                  429: TooManyRequests, TooManySessions
    ├── NotFound                 404: UnknownSession, UnknownBundle, UnknownVersion, UnknownToken
    ├── SessionGone              410: SessionClosed, SessionExpired
    ├── Conflict                 409: NoOpenEpisode, WrongEpisode, WrongStep, StepNotActed, TransitionOutOfOrder, DuplicateTransition,
    │                            ConcurrentUpdate, DeadlinePassed
    ├── MethodNotAllowed         405
    ├── BodyTooLarge             413
    ├── HeadersTooLarge          431
    ├── HeadTimeout              408: the request's head took too long to come
    ├── BodyTimeout              408: its body did; it had no effect
    └── ServiceFailed            5xx: StorageUnavailable, Unavailable, Overloaded, ShuttingDown, InternalError, PolicyOutputInvalid
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from clients.sdk.models import ItemResult


class SkilletError(Exception):
    """Base class. ``code`` is stable; the other fields are None where they do not apply. ``attempts``: how often it was sent."""

    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        expected: Any = None,
        received: Any = None,
        action: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.detail, self.status, self.expected, self.received = detail, status, expected, received
        self.code = code or self.default_code
        self.action, self.request_id = action, request_id
        self.attempts = 1
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        parts = [self.detail.rstrip(".")]
        if self.expected is not None and self.received is not None:
            parts.append(f"expected {self.expected}, got {self.received}")
        if self.action:
            parts.append(self.action.rstrip("."))
        where = f" [{self.code}" + (f", request {self.request_id}]" if self.request_id else "]")
        return "; ".join(parts) + where


class ConnectionFailed(SkilletError):
    """No HTTP reply came. ``request_sent``: bytes of the request had left, so it may have had its effect."""

    default_code = "connection_failed"

    def __init__(self, detail: str, *, request_sent: bool = False, **fields: Any) -> None:
        self.request_sent = request_sent
        super().__init__(detail, **fields)


class NothingListening(ConnectionFailed):
    """The connection was refused, or the host has no address."""

    default_code = "nothing_listening"


class NotHttp(ConnectionFailed):
    """Something that does not speak HTTP answers at this address."""

    default_code = "not_http"


class TlsMismatch(ConnectionFailed):
    """One side speaks TLS and the other does not, or the certificate is not trusted."""

    default_code = "tls_mismatch"


class ConnectionLost(ConnectionFailed):
    """The connection was cut before the reply was complete."""

    default_code = "connection_lost"


class RequestTimeout(ConnectionFailed):
    """No complete reply came in time."""

    default_code = "request_timeout"


class DamagedReply(ConnectionFailed):
    """The reply does not fit its digest, or lost it."""

    default_code = "damaged_reply"


class UnsafeAction(SkilletError):
    """An action came that no robot should follow."""

    default_code = "unsafe_action"


class UnexpectedReply(SkilletError):
    """An HTTP reply that this SDK cannot read."""

    default_code = "unexpected_reply"


class EpisodeState(SkilletError):
    """The call does not fit where the episode stands: nothing was sent."""

    default_code = "episode_state"


class ItemsRefused(SkilletError):
    """Some items of a batch were refused, each for its own reason (``results``); the others are stored."""

    default_code = "items_refused"

    def __init__(self, results: "list[ItemResult]") -> None:
        self.results = tuple(results)
        first = results[0]
        super().__init__(
            f"{len(results)} items were refused, first step {first.step} of episode {first.episode}: {first.detail}",
            action="look at the results: each has its code",
        )


class ServiceError(SkilletError):
    """The service refused the request; nothing was changed. ``retry_after_s``: when it may be sent again, where the service says so."""

    retry_after_s: float | None = None


class InvalidRequest(ServiceError):
    """A field is missing, unknown, of the wrong type or out of range."""

    default_code = "invalid_request"


class InvalidObservation(InvalidRequest):
    """An observation has the wrong length or a number that is not finite."""

    default_code = "invalid_observation"


class IdempotencyKeyReused(InvalidRequest):
    """The same idempotency key came with another body before."""

    default_code = "idempotency_key_reused"


class ObservationOutOfRange(InvalidObservation):
    """A number is wildly outside what the policy was trained on."""

    default_code = "observation_out_of_range"


class DamagedRequest(InvalidRequest):
    """The request was damaged on its way."""

    default_code = "damaged_request"


class MalformedRequest(DamagedRequest):
    """What the service received was no HTTP."""

    default_code = "malformed_request"


class NotFound(ServiceError):
    """Something named in the request does not exist."""

    default_code = "not_found"


class UnknownSession(NotFound):
    """There is no session of this id."""

    default_code = "unknown_session"


class UnknownBundle(NotFound):
    """The service serves no bundle of this name."""

    default_code = "unknown_bundle"


class UnknownVersion(NotFound):
    """The session has no such policy version."""

    default_code = "unknown_version"


class UnknownToken(NotFound):
    """There is no token of this id."""

    default_code = "unknown_token"


class Unauthorized(ServiceError):
    """The service asks for a token: none was sent, or one that is not valid."""

    default_code = "unauthorized"


class Forbidden(ServiceError):
    """The token's role may not do this."""

    default_code = "forbidden"


class TooMany(ServiceError):
    """More than the service takes; ``retry_after_s`` says when to come again."""

    default_code = "too_many"


class TooManyRequests(TooMany):
    """This client sends more requests a second than it may."""

    default_code = "too_many_requests"


class TooManySessions(TooMany):
    """As many sessions are open as may be."""

    default_code = "too_many_sessions"


class SessionGone(ServiceError):
    """The session was there and is not any more."""

    default_code = "session_gone"


class SessionClosed(SessionGone):
    """The session was closed."""

    default_code = "session_closed"


class SessionExpired(SessionGone):
    """The session's time to live has passed."""

    default_code = "session_expired"


class Conflict(ServiceError):
    """The request does not fit the session's state."""

    default_code = "conflict"


class NoOpenEpisode(Conflict):
    """No episode is open: start one."""

    default_code = "no_open_episode"


class WrongEpisode(Conflict):
    """Another episode is open."""

    default_code = "wrong_episode"


class WrongStep(Conflict):
    """Another step is due."""

    default_code = "wrong_step"


class StepNotActed(Conflict):
    """An outcome was sent for a step whose action was never asked for."""

    default_code = "step_not_acted"


class TransitionOutOfOrder(Conflict):
    """An earlier step of the episode has no outcome yet."""

    default_code = "transition_out_of_order"


class DuplicateTransition(Conflict):
    """Every transition in the request is there already."""

    default_code = "duplicate_transition"


class DeadlinePassed(Conflict):
    """The answer would have come too late; nothing was changed."""

    default_code = "deadline_passed"


class ConcurrentUpdate(Conflict):
    """Other requests kept changing the session at the same moment."""

    default_code = "concurrent_update"


class MethodNotAllowed(ServiceError):
    """The path is there and does not take this method."""

    default_code = "method_not_allowed"


class BodyTooLarge(ServiceError):
    """The request's body is larger than the service takes."""

    default_code = "body_too_large"


class HeadersTooLarge(ServiceError):
    """The request has more headers than the service takes."""

    default_code = "headers_too_large"


class HeadTimeout(ServiceError):
    """The request's head took too long to come."""

    default_code = "head_timeout"


class BodyTimeout(ServiceError):
    """The request's body took too long to come. It had no effect."""

    default_code = "body_timeout"


class ServiceFailed(ServiceError):
    """The service could not do what it should."""

    default_code = "service_failed"


class StorageUnavailable(ServiceFailed):
    """The service cannot reach its Redis."""

    default_code = "storage_unavailable"


class Unavailable(ServiceFailed):
    """The service cannot take the request at the moment."""

    default_code = "unavailable"


class Overloaded(ServiceFailed):
    """The service has more requests than it can answer soon."""

    default_code = "overloaded"


class ShuttingDown(ServiceFailed):
    """The process that was asked stops; another takes the request."""

    default_code = "shutting_down"


class InternalError(ServiceFailed):
    """The service has a fault; its log has the request id."""

    default_code = "internal_error"


class PolicyOutputInvalid(ServiceFailed):
    """The policy gave a number that is not finite; it was not sent."""

    default_code = "policy_output_invalid"


_BY_STATUS: dict[int, type[ServiceError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: SessionGone,
    413: BodyTooLarge,
    422: InvalidRequest,
    429: TooMany,
}


def _subclasses(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


_BY_CODE: dict[str, type[ServiceError]] = {cls.default_code: cls for cls in _subclasses(ServiceError)}


def from_problem(status: int, problem: Mapping[str, Any], request_id: str | None = None, retry_after: str | None = None) -> ServiceError:
    """The error for a problem+json answer: by its code, and for a code that this SDK does not know, by its status.

    ``retry_after`` is the header of that name, which what is no frame has.
    """
    code = problem.get("code")
    by_status = _BY_STATUS.get(status, ServiceFailed if status >= 500 else ServiceError)
    cls = _BY_CODE.get(str(code), by_status)
    error = cls(
        str(problem.get("detail") or problem.get("title") or f"the service answered with status {status}"),
        code=None if code is None else str(code),
        status=status,
        expected=problem.get("expected"),
        received=problem.get("received"),
        action=problem.get("action"),
        request_id=problem.get("request_id") or request_id,
    )
    retry_after_s = problem.get("retry_after_s", float(retry_after) if retry_after and retry_after.isdecimal() else None)
    error.retry_after_s = float(retry_after_s) if isinstance(retry_after_s, int | float) else None
    return error
