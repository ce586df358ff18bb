"""The safety envelope that a bundle carries: what actions and observations looked like in the data that its skills were learned from.

The service and the SDK hold every action inside it. An observation outside the usual range is flagged; one that is wildly outside it
(another unit, a broken sensor) is refused.
"""

import math
from collections.abc import Sequence
from operator import le
from typing import Final, Self

import numpy as np
from pydantic import Field, model_validator

from training.contract.context import Floats
from training.contract.spec import Frozen, ModelSpec

ACTION_LIMITED: Final = "action_limited"
CHANGE_LIMITED: Final = "change_limited"
OBSERVATION_OUTSIDE: Final = "observation_outside"

_SMALLEST: Final = float(np.finfo(np.float32).tiny)


class Envelope(Frozen):
    """Limits for each entry of an action [A] and an observation [S], margins included. None of them is NaN."""

    action_low: tuple[float, ...] = Field(description="smallest action [A]")
    action_high: tuple[float, ...] = Field(description="largest action [A]")
    action_change: tuple[float, ...] = Field(description="largest change of an action from one step to the next [A]")
    observation_low: tuple[float, ...] = Field(description="below this an observation is flagged [S]")
    observation_high: tuple[float, ...] = Field(description="above this an observation is flagged [S]")
    refused_low: tuple[float, ...] = Field(description="below this an observation is refused [S]")
    refused_high: tuple[float, ...] = Field(description="above this an observation is refused [S]")
    source: str = Field(description="what the limits come from")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._ordered("action_low", "action_high")
        self._ordered("refused_low", "observation_low", "observation_high", "refused_high")
        if len(self.action_change) != len(self.action_low) or not all(change > 0 for change in self.action_change):
            raise ValueError(f"action_change: expected {len(self.action_low)} numbers above 0, got {self.action_change}")
        return self

    def _ordered(self, *fields: str) -> None:
        values = [getattr(self, field) for field in fields]
        if len({len(value) for value in values}) != 1:
            raise ValueError(f"{', '.join(fields)}: expected one length, got {[len(value) for value in values]}")
        for entry in zip(*values, strict=True):
            if any(math.isnan(number) for number in entry) or list(entry) != sorted(entry):
                raise ValueError(f"{' <= '.join(fields)}: expected in each entry, got {entry}")

    @classmethod
    def of_spec(cls, spec: ModelSpec) -> "Envelope":
        """The limits of a bundle that carries no envelope: those of its spec, and no limit on an action's change."""
        change = tuple(max(high - low, _SMALLEST) for low, high in zip(spec.action.low, spec.action.high, strict=True))
        return cls(
            action_low=spec.action.low,
            action_high=spec.action.high,
            action_change=change,
            observation_low=spec.observation.low,
            observation_high=spec.observation.high,
            refused_low=(-math.inf,) * spec.state_dim,
            refused_high=(math.inf,) * spec.state_dim,
            source="the limits of the spec; the bundle carries no envelope",
        )

    def check(self, spec: ModelSpec) -> None:
        """Raise ValueError when the lengths are not those of ``spec``, or actions could leave the spec's limits."""
        if len(self.action_low) != spec.action_dim or len(self.observation_low) != spec.state_dim:
            raise ValueError(
                f"the envelope has {len(self.action_low)} action and {len(self.observation_low)} observation entries, "
                f"the spec {spec.action_dim} and {spec.state_dim}"
            )
        low, high = np.asarray(self.action_low) < spec.action.low, np.asarray(self.action_high) > spec.action.high
        if low.any() or high.any():
            raise ValueError("the envelope lets actions leave the limits of the spec")


class Range:
    """Smallest and largest value of each entry of a vector [D]. Comparisons are those of float32."""

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self.bounded = bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())
        self._low, self._high = self.low.tolist(), self.high.tolist()

    def holds(self, values: Sequence[float]) -> bool:
        """Whether all of ``values`` [D], each one that float32 has, are inside. In plain Python: for so few numbers numpy takes longer."""
        return all(map(le, self._low, values)) and all(map(le, values, self._high))

    def hold(self, values: Floats) -> Floats:
        """``values`` [D] with each entry moved to the nearest one of the range: itself, the same object, if all are inside.

        What comes back as it was has no NaN, and is finite if the range is ``bounded``.
        """
        if self.holds(values.tolist()):
            return values
        held: Floats = np.fmin(np.fmax(values, self.low), self.high)
        return held

    def outside(self, values: Floats) -> list[int]:
        """Entries that are outside."""
        return np.flatnonzero((values < self.low) | (values > self.high)).tolist()


class Guard:
    """An envelope, ready to be applied."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self._action = Range(envelope.action_low, envelope.action_high)
        self._change = np.asarray(envelope.action_change, np.float32)
        self._changes: list[float] = self._change.tolist()
        self._usual = Range(envelope.observation_low, envelope.observation_high)
        self._refused = Range(envelope.refused_low, envelope.refused_high)

    def limit(self, action: Floats, previous: Sequence[float] | None) -> tuple[Floats, tuple[str, ...]]:
        """``action`` [A] held inside the envelope, coming from ``previous`` [A] (None at an episode's first step), and what was limited.

        Raises ValueError when ``action`` is not finite: there is no safe number to send in its place.
        """
        if self._action.bounded and self._action.holds(values := action.tolist()) and self._is_near(values, previous):
            return action, ()
        held, flags = self._action.hold(action), []
        if not np.isfinite(action).all():
            raise ValueError("expected a finite action")
        if (held != action).any():
            flags.append(ACTION_LIMITED)
        if previous is not None:
            before = np.asarray(previous, np.float32)
            near: Floats = np.fmin(np.fmax(held, before - self._change), before + self._change)
            if (near != held).any():
                flags.append(CHANGE_LIMITED)
                held = self._action.hold(near)
        return held, tuple(flags)

    def _is_near(self, values: Sequence[float], previous: Sequence[float] | None) -> bool:
        """Whether ``values`` are known not to be too far from ``previous``.

        In double precision: a bound that they keep to is not moved past them when float32 rounds it, since it has all of them.
        """
        return previous is None or all(
            before - change <= value <= before + change for value, before, change in zip(values, previous, self._changes, strict=True)
        )

    def usual(self, state: Sequence[float]) -> bool:
        """Whether an observation [S], of numbers that float32 has, is known at little cost to be finite and inside the usual range."""
        return self._usual.bounded and self._usual.holds(state)

    def outside(self, state: Floats) -> list[int]:
        """Entries of an observation [S] that are outside the usual range."""
        return self._usual.outside(state)

    def refused(self, state: Floats) -> int | None:
        """The first entry of an observation [S] that is wildly outside, if there is one."""
        return next(iter(self._refused.outside(state)), None)
