"""Decoding and checking request bodies."""

import re
from typing import Any, TypeVar

import msgspec

from service.errors import InvalidObservation, InvalidRequest
from service.schemas import Request

RequestType = TypeVar("RequestType", bound=Request)
_DECODERS: dict[type[Request], msgspec.json.Decoder[Any]] = {}
_LONGEST = 300
_PATH = re.compile(r"`(\$[^`]*)`$")
_NOT_FINITE = re.compile(rb"(?<![\w\"])-?(NaN|Infinity|nan|inf|Inf)\b")


def decode(body: bytes, kind: type[RequestType]) -> RequestType:
    """Decode and check a request body. An empty body reads as ``{}``.

    Raises InvalidRequest (or InvalidObservation for a field that holds one) with the path of the wrong field.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        found: RequestType = decoder.decode(body or b"{}")
    except msgspec.ValidationError as error:
        raise misfit(str(error)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _malformed(body, error) from error
    return found


def misfit(message: str) -> InvalidRequest:
    """The problem that msgspec's message about a wrong field tells of."""
    what, _, where = message.rpartition(" - at ") if " - at " in message else (message, "", "")
    what = what[:_LONGEST]  # it may quote a value as long as the whole body
    path = match.group(1) if (match := _PATH.search(where)) else "$"
    expected, _, received = what.partition(", got ")
    kind = InvalidObservation if "observation" in path else InvalidRequest
    return kind(
        f"{path}: {what}",
        expected=expected.removeprefix("Expected ") if received else what,
        received=received or None,
        action=f"Correct the field {path}; the schema is at /docs.",
    )


def _malformed(body: bytes, error: Exception) -> InvalidRequest:
    if token := _NOT_FINITE.search(body):
        value = token.group().decode()
        return InvalidObservation(
            f"the body holds {value} (byte {token.start()}), which is no JSON and no number that a policy can use",
            expected="finite numbers",
            received=value,
            action="Leave out or repair readings that are not finite before sending them.",
        )
    return InvalidRequest(
        f"the body is no valid JSON: {error}", expected="a JSON object in UTF-8", action="Send JSON; the schema is at /docs."
    )
