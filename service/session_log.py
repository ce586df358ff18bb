"""A session's log: what was told to it and what it answered, in order, from which it can be replayed.

One entry of the Redis list holds the events of one save (msgpack). Only the newest `KEPT_SAVES` are kept.
"""

from collections.abc import Sequence
from typing import Final, cast

import msgspec
from msgspec import Struct
from redis import Redis

from service.keys import SessionKeys
from training.contract.exploration import Phase

KEPT_SAVES: Final = 50_000
"""Of some 150 bytes each: one for a control step."""


class Began(Struct, frozen=True, tag="began", array_like=True):
    """An episode began, with ``rows`` skill transitions before it, acting with this embedding, float32 [E], or these in turn [n, E].

    ``route``: float32 [n, R], along which it goes back to a reward once it is overdue. What the session had seen in vain when the episode
    began, until its first reward: ``plausibility`` float32 [P] of particles, and the places ``seen`` float32 [m, R]. The episodes before
    that tell of it may no longer be in the log.
    """

    episode: int
    rows: int
    phase: Phase
    use_skill_prior: bool
    embedding: bytes
    task_version: int
    route: bytes = b""
    plausibility: bytes = b""
    seen: bytes = b""


class Acted(Struct, frozen=True, tag="acted", array_like=True):
    """An action was given for a state; ``skill`` (float32 [Z]) when it began one, chosen in ``phase`` by this version.

    ``rewarded``: whether the session had seen a reward by then. ``beyond``: whether the skill explored because there was nothing left to
    gain, or went back to a reward because the episode was overdue. ``detour``: whether it was one of a detour. ``rewards_due``: whether
    rewards before it were not known yet, so that the session did not take its state for seen in vain.
    """

    step: int
    state: bytes
    action: bytes
    policy_version: int
    phase: Phase
    skill: bytes | None
    rewarded: bool = False
    beyond: bool = False
    detour: bool = False
    rewards_due: bool = False


class Reported(Struct, frozen=True, tag="reported", array_like=True):
    """A transition came in; ``reward`` None: it followed."""

    step: int
    reward: float | None
    next_state: bytes
    terminated: bool
    truncated: bool


class Rewarded(Struct, frozen=True, tag="rewarded", array_like=True):
    """A reward that was to follow came in."""

    step: int
    reward: float


Event = Began | Acted | Reported | Rewarded
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Event])


def pack(events: Sequence[Event]) -> bytes:
    """As one entry of the log; nothing for no events."""
    return _encoder.encode(events) if events else b""


def read_log(redis: "Redis", keys: SessionKeys) -> list[Event]:
    """All events that are kept, from the first episode that is whole in the log on."""
    entries = cast(list[bytes], redis.lrange(keys.log, 0, -1))
    events = [event for entry in entries for event in _decoder.decode(entry)]
    start = next((index for index, event in enumerate(events) if isinstance(event, Began)), len(events))
    return events[start:]
