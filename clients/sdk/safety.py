"""The bundle's safety envelope on the robot's side: no action leaves it, whatever came over the network."""

from collections.abc import Sequence

import numpy as np

from clients.sdk.errors import InvalidObservation, UnsafeAction
from clients.sdk.models import Envelope, Floats, ModelSpec

_ROUNDING = np.float32(1e-6)


class ActionGuard:
    """Holds actions inside an envelope; ``limited`` counts those that it had to change, which the service's own guard should make none."""

    def __init__(self, envelope: Envelope, spec: ModelSpec) -> None:
        self._spec = spec
        self._low, self._high = _limit(envelope.action_low, -np.inf), _limit(envelope.action_high, np.inf)
        self._change = _limit(envelope.action_change, np.inf)
        self._refused = _limit(envelope.refused_low, -np.inf), _limit(envelope.refused_high, np.inf)
        self._bounded = bool(np.isfinite(self._low).all() and np.isfinite(self._high).all())
        self.limited = 0

    def hold(self, action: Floats, previous: Floats | None) -> Floats:
        """``action`` [A] held inside the envelope, coming from ``previous`` [A] (None at an episode's first step).

        Raises UnsafeAction for a number that is not finite or a wrong shape: there is no safe action to make of it.
        """
        low, high = self._low, self._high
        if previous is not None:
            low, high = np.maximum(low, previous - self._change), np.minimum(high, previous + self._change)
        if self._bounded and action.shape == low.shape and ((action >= low) & (action <= high)).all():
            return action
        if action.shape != self._low.shape or not np.isfinite(action).all():
            raise UnsafeAction(
                "the service sent an action that no robot should follow",
                expected=f"{len(self._low)} finite numbers",
                received=action.tolist(),
                action="stop the robot; look at the service's log",
            )
        held: Floats = np.clip(action, self._low, self._high)
        if previous is not None:
            held = np.clip(np.clip(held, previous - self._change, previous + self._change), self._low, self._high)
        self.limited += 1
        return held

    def is_near(self, action: Floats, previous: Floats) -> bool:
        """Whether ``action`` [A] may follow ``previous`` [A]."""
        return bool((np.abs(action - previous) <= self._change + _ROUNDING).all())

    def check(self, observation: Sequence[float]) -> None:
        """Raise InvalidObservation for a number wildly outside, as the service does."""
        state = np.asarray(observation, np.float32)
        wild = (state < self._refused[0]) | (state > self._refused[1])
        if wild.any():
            index = int(wild.argmax())
            name, unit = self._spec.observation.names[index], self._spec.observation.units[index]
            raise InvalidObservation(
                f"{name} is far from anything that the policy was trained on",
                expected=f"{self._refused[0][index]:g} to {self._refused[1][index]:g} {unit}",
                received=observation[index],
                action="check the sensor and its unit",
            )


def _limit(values: Sequence[float | None], infinite: float) -> Floats:
    """A limit that is infinite is null on the wire."""
    return np.array([infinite if value is None else value for value in values], np.float32)
