"""Reading bodies and writing replies and problems."""

import asyncio
import logging
from typing import Any, Final, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service import schemas
from service.decoding import decode
from service.doors import caller_of
from service.errors import BodyTimeout, BodyTooLarge, DamagedRequest, InvalidRequest, MethodNotAllowed, NotFound, ServiceError
from service.faults import Outages, as_problem
from service.framing import header, request_digest, request_id
from service.limits import Bodies
from service.metrics import Metrics
from service.storage import is_outage

_log = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()
BODY_TIMEOUT_S: Final = 20.0
"""How long a request may take for its body, once its head is there."""
_JSON = (b"content-type", b"application/json")
RequestType = TypeVar("RequestType", bound=schemas.Request)


class _Json(Response):
    """A JSON reply without what Starlette works out for each."""

    def __init__(self, body: bytes, status: int) -> None:
        self.status_code, self.body, self.background = status, body, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _JSON]


def reply(body: Any, status: int = 200) -> Response:
    """A JSON reply."""
    return _Json(_encoder.encode(body), status)


def encode(body: Any) -> bytes:
    """JSON, always the same bytes for the same content."""
    return _encoder.encode(body)


async def read(request: Request, kind: type[RequestType]) -> RequestType:
    """Read and decode a body. Raises as `intact`, or InvalidRequest."""
    return decode(await intact(request), kind)


async def intact(request: Request) -> bytes:
    """The body of a request that fits its digest, if it has one: to be waited for before the request has an effect.

    Raises BodyTooLarge before more than the limit has been kept, BodyTimeout, TooManyRequests (`Bodies`), or DamagedRequest.
    """
    body = await _body(request)
    claimed = header(request.scope, b"skillet-digest")
    if claimed is not None and claimed != request_digest(request.scope, body):
        raise DamagedRequest(
            "the request was damaged on its way: it does not fit its digest",
            expected="the digest of method, path, headers and body",
            received=claimed[:64].decode("latin-1"),
            action="Send it again; over a bad link use TLS.",
        )
    return body


async def _body(request: Request) -> bytes:
    limit: int = request.app.state.max_body_bytes
    length = header(request.scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise _too_large(limit, int(length))
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            bodies: Bodies = request.app.state.parts.bodies
            caller = caller_of(request)
            with bodies.awaited(None if caller.token_id is None else caller.owner):
                return await _received(request, limit)
    except TimeoutError:
        raise BodyTimeout(
            f"the request's body did not come within {BODY_TIMEOUT_S:g} s; the request had no effect",
            action="Send it again, on a new connection; a batch of transitions in smaller parts.",
        ) from None


async def _received(request: Request, limit: int) -> bytes:
    """The whole body. A connection that ends before it is there has asked for nothing, not for an empty body."""
    body: bytes = b""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit, f"more than {limit}")
        if not message.get("more_body", False):
            return body


def problem(request: Request, error: ServiceError, metrics: Metrics, headers: dict[str, str] | None = None) -> Response:
    """The problem document of an error, counted."""
    number = request_id(request.scope)
    metrics.errors.labels(error.code).inc()
    if error.status == 500:  # a 503 comes with every request while Redis is gone: `Outages` tells of it
        _log.error("%s: %s", error.code, error.detail, extra={"request_id": number, "code": error.code})
    body = _encoder.encode(error.problem(number))
    return Response(body, error.status, {**error.headers, **(headers or {})}, media_type="application/problem+json")


def answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Make every error leave as a problem document."""
    outages = Outages()

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return problem(request, error, metrics)

    @app.exception_handler(RedisError)
    async def redis_error(request: Request, error: RedisError) -> Response:
        if not is_outage(error):
            extra = {"request_id": request_id(request.scope), "method": request.method, "path": request.url.path}
            _log.error("Redis refused a command", exc_info=error, extra=extra)
        return problem(request, as_problem(error, outages), metrics)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody receives

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        found = InvalidRequest(
            f"{field}: {first['msg']}", expected=first["msg"], received=str(first.get("input"))[:100], action=f"Correct {field}; see /docs."
        )
        return problem(request, found, metrics)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return problem(request, _from_http(request, error), metrics, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return problem(request, as_problem(error, outages), metrics)


def _from_http(request: Request, error: HTTPException) -> ServiceError:
    asked = f"{request.method} {request.url.path}"[:200]
    if error.status_code == 404:
        return NotFound("nothing is at this path", received=asked, action="See /docs for the paths.")
    if error.status_code == 405:
        return MethodNotAllowed("this path has no such method", received=asked, action="See /docs for the methods.")
    return InvalidRequest(str(error.detail)[:200], received=asked)


def _too_large(limit: int, received: int | str) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body may have {limit} bytes",
        expected=f"at most {limit} bytes",
        received=f"{received} bytes",
        action="Send transitions in smaller batches.",
    )
