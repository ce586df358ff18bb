"""Frames of `/v1/stream`: msgpack maps, one each way for each call.

A frame of the client names its ``type`` and carries the body of the REST call that does the same; the reply carries that call's status and
reply, or its problem document. ``id`` is the client's own number for the call, and comes back with the reply. Where client and service
agreed on the subprotocol ``skillet.v1.digest``, each frame begins with 12 bytes of BLAKE2b (`sealed`).
"""

import hashlib
from typing import Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta, Struct

from service.decoding import misfit
from service.errors import DamagedRequest, InvalidRequest
from service.schemas import Act, OpenSession, PostRewards, PostTransitions, Transition

PLAIN: Final = "skillet.v1"
WITH_DIGESTS: Final = "skillet.v1.digest"
DIGEST_BYTES: Final = 12

# Unlike JSON, msgpack holds NaN and infinity; no comparison holds for NaN.
Milliseconds = Annotated[float, Meta(gt=0, le=1e12)]
ClockMilliseconds = Annotated[float, Meta(ge=-1e15, le=1e15)]


class Frame(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """What all frames of a client have."""

    id: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Open(Frame, frozen=True, kw_only=True, tag="open"):
    """Open a session, and speak of it from now on: ``POST /v1/sessions``, ``key`` as ``Idempotency-Key``."""

    body: OpenSession = OpenSession()
    key: str | None = None


class Attach(Frame, frozen=True, kw_only=True, tag="attach"):
    """Speak of a session that is there."""

    session_id: str


class Start(Frame, frozen=True, kw_only=True, tag="start"):
    """Start an episode: ``POST .../episodes``."""

    key: str | None = None


class Timed(Frame, frozen=True, kw_only=True):
    """A call whose answer is of use for ``deadline_ms`` after ``sent_ms``, by the client's clock."""

    deadline_ms: Milliseconds | None = None
    sent_ms: ClockMilliseconds | None = None


class ActFrame(Timed, frozen=True, kw_only=True, tag="act"):
    """Ask for an action: ``POST .../act``."""

    body: Act


class StepFrame(Timed, frozen=True, kw_only=True, tag="step"):
    """Report an outcome and ask for the next action: ``POST .../step``."""

    body: Transition


class StepsFrame(Timed, frozen=True, kw_only=True, tag="steps"):
    """Report outcomes of steps that the robot decoded itself, and ask for the next action: ``POST .../steps``."""

    body: PostTransitions


class TransitionsFrame(Frame, frozen=True, kw_only=True, tag="transitions"):
    """Report outcomes: ``POST .../transitions``."""

    body: PostTransitions


class RewardsFrame(Frame, frozen=True, kw_only=True, tag="rewards"):
    """Report rewards: ``POST .../rewards``."""

    body: PostRewards


class End(Frame, frozen=True, kw_only=True, tag="end"):
    """End the open episode as truncated: ``POST .../episodes/end``."""


AnyFrame = Open | Attach | Start | ActFrame | StepFrame | StepsFrame | TransitionsFrame | RewardsFrame | End


class ReplyFrame(Struct, frozen=True):
    """The reply to frame ``id``: an HTTP status, the time in the service in milliseconds, and the call's reply or problem document."""

    id: int
    status: int
    app_ms: float
    body: Any


class _Numbered(Struct, frozen=True):
    id: int = 0


class _Tagged(Struct, frozen=True):
    type: str = ""


_KINDS: Final = {kind.__struct_config__.tag: kind for kind in get_args(AnyFrame)}
_decoder = msgspec.msgpack.Decoder(AnyFrame)
_number_decoder = msgspec.msgpack.Decoder(_Numbered)
_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode


def decode(data: bytes) -> AnyFrame:
    """Decode and check a frame. Raises InvalidRequest, or InvalidObservation, with the path of the wrong field."""
    try:
        frame: AnyFrame = _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise misfit(str(error), _kind_of(data)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"the frame is no valid msgpack: {error}", expected="a msgpack map", action="Send msgpack; docs/protocols.md has the frames."
        ) from error
    return frame


def _kind_of(data: bytes) -> Any:
    """The type of a frame that does not fit; all of them when it cannot be read."""
    try:
        return _KINDS.get(msgspec.msgpack.decode(data, type=_Tagged).type, AnyFrame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return AnyFrame


def number_of(data: bytes) -> int:
    """The ``id`` of a frame that does not fit otherwise; 0 when it cannot be read."""
    try:
        return _number_decoder.decode(data).id
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return 0


def sealed(data: bytes, *before: bytes) -> bytes:
    """A frame with its digest in front: over ``before`` (for a reply, the digest of the frame that it answers) and the frame."""
    return hashlib.blake2b(b"".join((*before, data)), digest_size=DIGEST_BYTES).digest() + data


def unsealed(frame: bytes) -> bytes:
    """The frame without its digest. Raises DamagedRequest when they do not fit."""
    data = frame[DIGEST_BYTES:]
    if sealed(data) != frame:
        raise DamagedRequest(
            "the frame was damaged on its way: it does not fit its digest",
            expected="12 bytes of BLAKE2b over the rest of the frame, in front of it",
            received=frame[:DIGEST_BYTES].hex(),
            action="Send it again; over a bad link use TLS.",
        )
    return data
