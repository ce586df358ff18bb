"""Errors of the service. Each leaves it as RFC 9457 problem+json with a stable code, what was expected, what came and what to do.

SkilletError
├── StartupError                      the service cannot start: one line on stderr, exit code 2
└── ServiceError
    ├── InvalidRequest           422  a body or parameter does not fit its schema
    │   ├── IdempotencyKeyReused 422  the key came with another body before
    │   ├── DamagedRequest       400  a request does not fit its digest
    │   └── InvalidObservation   422  an observation has the wrong length, type or a number that is not finite
    │       └── ObservationOutOfRange 422  a number wildly outside the bundle's safety envelope
    ├── Unauthorized             401  no token, or one that is not valid
    ├── Forbidden                403  the token's role may not do this
    ├── BodyTooLarge             413
    ├── HeadTimeout              408  a request's head took too long
    ├── BodyTimeout              408  its body did
    ├── HeadersTooLarge          431
    ├── TooMany                  429  with Retry-After
    │   ├── TooManyRequests      429
    │   └── TooManySessions      429
    ├── NotFound                 404
    │   ├── UnknownSession       404
    │   ├── UnknownBundle        404
    │   ├── UnknownVersion       404
    │   └── UnknownToken         404
    ├── MethodNotAllowed         405
    ├── Gone                          these and the conflicts: `service.session_errors`
    │   ├── SessionClosed        410
    │   └── SessionExpired       410
    ├── Conflict
    │   ├── NoOpenEpisode        409
    │   ├── WrongEpisode         409
    │   ├── WrongStep            409
    │   ├── StepNotActed         409
    │   ├── TransitionOutOfOrder 409
    │   ├── DuplicateTransition  409
    │   ├── DeadlinePassed       409  the answer would come too late to be of use
    │   └── ConcurrentUpdate     409  other requests kept changing the session at the same moment
    ├── Unavailable
    │   ├── StorageUnavailable   503
    │   ├── Overloaded           503  more requests at a time than this process answers soon
    │   └── ShuttingDown         503  this process stops; another one, or the next, answers
    └── InternalError            500
        └── PolicyOutputInvalid  500  the policy gave a number that is not finite; it is not sent to a robot
"""

import math
from typing import Any, ClassVar

from training.contract.errors import SkilletError


class StartupError(SkilletError):
    """The service cannot start."""


class ServiceError(SkilletError):
    """An error with an HTTP status. ``expected``, ``received`` and ``action`` go into the problem document."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, expected: Any = None, received: Any = None, action: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.expected = expected
        self.received = received
        self.action = action

    @property
    def retry_after_s(self) -> int | None:
        """After how many seconds it is worth asking again, where that is known."""
        return None

    @property
    def headers(self) -> dict[str, str]:
        """What the reply carries beside the problem document."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}

    def problem(self, request_id: str) -> dict[str, Any]:
        """The problem document (RFC 9457)."""
        retry = {} if self.retry_after_s is None else {"retry_after_s": self.retry_after_s}
        return {
            "type": f"urn:skillet:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "expected": self.expected,
            "received": self.received,
            "action": self.action,
            "request_id": request_id,
            **retry,
        }


class InvalidRequest(ServiceError):
    """A body or parameter does not fit its schema."""

    status, code, title = 422, "invalid_request", "Invalid request"


class InvalidObservation(InvalidRequest):
    """An observation does not fit the bundle's specs."""

    code, title = "invalid_observation", "Invalid observation"


class IdempotencyKeyReused(InvalidRequest):
    """The same idempotency key came with another body."""

    code, title = "idempotency_key_reused", "Idempotency key reused"


class ObservationOutOfRange(InvalidObservation):
    """A number is wildly outside what the bundle was trained on: another unit, or a broken sensor."""

    code, title = "observation_out_of_range", "Observation out of range"


class DamagedRequest(InvalidRequest):
    """The request does not fit the digest that it carries."""

    status, code, title = 400, "damaged_request", "Damaged request"


class MalformedRequest(ServiceError):
    """What came is no HTTP."""

    status, code, title = 400, "malformed_request", "Malformed request"


class Unauthorized(ServiceError):
    """The caller has no valid token. ``tried``: it sent one."""

    status, code, title = 401, "unauthorized", "Unauthorized"

    def __init__(self, detail: str, *, tried: bool = False, expected: Any = None, action: str | None = None) -> None:
        super().__init__(detail, expected=expected, action=action)
        self.tried = tried

    @property
    def headers(self) -> dict[str, str]:
        """How to authenticate (RFC 6750)."""
        return {"www-authenticate": 'Bearer realm="skillet"' + (', error="invalid_token"' if self.tried else "")}


class Forbidden(ServiceError):
    """The caller's role may not do this."""

    status, code, title = 403, "forbidden", "Forbidden"


class BodyTooLarge(ServiceError):
    """The body has more bytes than the service reads."""

    status, code, title = 413, "body_too_large", "Body too large"


class NotFound(ServiceError):
    """Nothing is at this path."""

    status, code, title = 404, "not_found", "Not found"


class UnknownSession(NotFound):
    """No session has this id."""

    code, title = "unknown_session", "Unknown session"


class UnknownBundle(NotFound):
    """No bundle (or no file of it) has this name."""

    code, title = "unknown_bundle", "Unknown bundle"


class UnknownVersion(NotFound):
    """The session has no such policy version."""

    code, title = "unknown_version", "Unknown policy version"


class UnknownToken(NotFound):
    """No token has this id."""

    code, title = "unknown_token", "Unknown token"


class MethodNotAllowed(ServiceError):
    """The path exists, but not with this method. ``allowed``: those that it has."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"

    @property
    def headers(self) -> dict[str, str]:
        """The methods that there are."""
        return {"allow": ", ".join(self.expected or ())}


class HeadersTooLarge(ServiceError):
    """The request has more bytes beside its body than the service reads."""

    status, code, title = 431, "headers_too_large", "Request header fields too large"


class HeadTimeout(ServiceError):
    """The request's head took too long to come."""

    status, code, title = 408, "head_timeout", "Head timeout"


class BodyTimeout(ServiceError):
    """The request's body took too long to come."""

    status, code, title = 408, "body_timeout", "Body timeout"

    @property
    def headers(self) -> dict[str, str]:
        """What still comes on this connection is of no use."""
        return {"connection": "close"}


class TooMany(ServiceError):
    """More than the service takes from one caller, or in all."""

    status = 429

    def __init__(self, detail: str, *, retry_after_s: float, **fields: Any) -> None:
        super().__init__(detail, **fields)
        self._retry_after_s = retry_after_s

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least one."""
        return max(1, math.ceil(self._retry_after_s))


class TooManyRequests(TooMany):
    """One caller sends more requests a second than it may."""

    code, title = "too_many_requests", "Too many requests"


class TooManySessions(TooMany):
    """As many sessions are open as may be."""

    code, title = "too_many_sessions", "Too many sessions"


class Unavailable(ServiceError):
    """The same request may succeed in a moment."""

    status, code, title = 503, "unavailable", "Unavailable"

    @property
    def retry_after_s(self) -> int:
        """The least that the header can say; whoever has a robot to drive may come sooner."""
        return 1


class StorageUnavailable(Unavailable):
    """Redis does not answer."""

    code, title = "storage_unavailable", "Storage unavailable"


class Overloaded(Unavailable):
    """There are more requests at a time than this process answers soon."""

    code, title = "overloaded", "Overloaded"


class ShuttingDown(Unavailable):
    """This process stops."""

    code, title = "shutting_down", "Shutting down"


class InternalError(ServiceError):
    """A fault of the service itself."""


class PolicyOutputInvalid(InternalError):
    """The policy gave a number that is not finite."""

    code, title = "policy_output_invalid", "Policy output invalid"
