"""Checking what a client says that its robot saw, against the bundle's spec and its safety envelope."""

import numpy as np

from service.errors import InvalidObservation, ObservationOutOfRange
from service.policies import Networks
from training.contract.context import Floats, unpack_vector


def check_observation(values: list[float], networks: Networks, path: str) -> Floats:
    """The observation as float32 [S]; one outside the safety envelope's usual range is not refused (see `outside`).

    Raises InvalidObservation when its length is wrong or a number does not fit float32, ObservationOutOfRange when a number is wildly
    outside the envelope.
    """
    spec = networks.spec.observation
    if len(values) != spec.dim:
        raise InvalidObservation(
            f"{path}: expected {spec.dim} numbers, got {len(values)}",
            expected={"length": spec.dim, "names": spec.names, "units": spec.units},
            received={"length": len(values)},
            action="Send one number for each name, in this order.",
        )
    packing = networks.packing
    try:
        packed = packing.pack(*values)
    except OverflowError:  # a number that float32 holds as infinite
        with np.errstate(over="ignore"):
            packed = np.array(values, np.float32).tobytes()
    state = unpack_vector(packed)
    if networks.guard.usual(packing.unpack(packed)):
        return state
    if not np.isfinite(state).all():
        index = int(np.flatnonzero(~np.isfinite(state))[0])
        raise InvalidObservation(
            f"{path}[{index}] ({spec.names[index]}): expected a finite float32 number, got {values[index]!r}",
            expected="a finite float32 number",
            received=repr(values[index]),
            action="Leave out or repair readings that are not finite before sending them.",
        )
    if (wild := networks.guard.refused(state)) is not None:
        envelope = networks.guard.envelope
        raise ObservationOutOfRange(
            f"{path}[{wild}] ({spec.names[wild]}): {values[wild]:g} {spec.units[wild]} is far from anything that the policy was trained on",
            expected=f"{envelope.refused_low[wild]:g} to {envelope.refused_high[wild]:g} {spec.units[wild]}",
            received=values[wild],
            action="Check the sensor and its unit.",
        )
    return state


def outside(state: Floats, networks: Networks) -> list[str]:
    """Names of the entries of an observation [S] that are outside the envelope's usual range."""
    if networks.guard.usual(state.tolist()):
        return []
    return [networks.spec.observation.names[index] for index in networks.guard.outside(state)]
