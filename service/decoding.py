"""Decoding and checking request bodies."""

import functools
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from service.errors import InvalidObservation, InvalidRequest
from service.schemas import Request

RequestType = TypeVar("RequestType", bound=Request)
_DECODERS: dict[type[Request], msgspec.json.Decoder[Any]] = {}
_type_info = functools.cache(inspect.type_info)  # of few kinds, and it takes longer than decoding
_LONGEST = 300
_PATH = re.compile(r"`(\$[^`]*)`$")
_STEP = re.compile(r"\.\w+|\[[^\]]*\]")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]{0,64})")
_WRONG_CHOICE = re.compile(r"Invalid (?:enum )?value (.{0,64})")
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
        raise misfit(str(error), kind) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _malformed(body, error) from error
    return found


def misfit(message: str, kind: Any) -> InvalidRequest:
    """The problem that msgspec's message about a wrong field of a ``kind`` tells of."""
    what, _, where = message.rpartition(" - at ") if " - at " in message else (message, "", "")
    what = what[:_LONGEST]  # it may quote a value as long as the whole body
    path = match.group(1) if (match := _PATH.search(where)) else "$"
    error = InvalidObservation if "observation" in path else InvalidRequest
    if missing := _MISSING.fullmatch(what):
        name = missing.group(1)
        path, what, expected, received = f"{path}.{name}", "the field is missing", f"the field {name}", None
    else:
        expected, received = _expected(what, path, kind)
    return error(f"{path}: {what}", expected=expected, received=received, action=f"Correct the field {path}; the schema is at /docs.")


def _expected(what: str, path: str, kind: Any) -> tuple[Any, str | None]:
    """What was expected and what came: the choices where msgspec names the wrong one only."""
    steps = ["" if step.startswith("[") else step[1:] for step in _STEP.findall(path)]
    if value := _WRONG_CHOICE.match(what):
        choices = [choice for each in _types(_type_info(kind), steps) for choice in _choices(each)]
        return list(dict.fromkeys(choices)) or what, value.group(1)
    if unknown := _UNKNOWN.match(what):
        structs = [each for each in _types(_type_info(kind), steps) if isinstance(each, inspect.StructType)]
        return [field.encode_name for field in structs[0].fields] if len(structs) == 1 else what, unknown.group(1)
    expected, _, received = what.partition(", got ")
    return expected.removeprefix("Expected "), received or None


def _types(kind: inspect.Type, steps: list[str]) -> Iterator[inspect.Type]:
    """The types that a value may have which is ``steps`` below one of ``kind``: names of fields, and "" for an entry of a list."""
    match kind:
        case inspect.Metadata():
            yield from _types(kind.type, steps)
        case inspect.UnionType():
            for each in kind.types:
                yield from _types(each, steps)
        case _ if not steps:
            yield kind
        case inspect.ListType():
            yield from _types(kind.item_type, steps[1:])
        case inspect.StructType():
            if steps == [kind.tag_field]:
                yield inspect.LiteralType((kind.tag,))
            for field in kind.fields:
                if field.encode_name == steps[0]:
                    yield from _types(field.type, steps[1:])


def _choices(kind: inspect.Type) -> list[Any]:
    """The values of a type that has a few; null is one."""
    match kind:
        case inspect.EnumType():
            return [member.value for member in kind.cls]
        case inspect.LiteralType():
            return list(kind.values)
        case inspect.NoneType():
            return [None]
    return []


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
