"""Checking what a client says that its robot saw."""

import numpy as np

from service.errors import InvalidObservation
from training.contract.context import Floats
from training.contract.spec import VectorSpec


def check_observation(values: list[float], spec: VectorSpec, path: str) -> Floats:
    """The observation as float32 [S]. Raises InvalidObservation when its length is wrong or a number does not fit float32."""
    if len(values) != spec.dim:
        raise InvalidObservation(
            f"{path}: expected {spec.dim} numbers, got {len(values)}",
            expected={"length": spec.dim, "names": spec.names, "units": spec.units},
            received={"length": len(values)},
            action="Send one number for each name, in this order.",
        )
    with np.errstate(over="ignore"):
        state = np.array(values, np.float32)
    if not np.isfinite(state).all():
        index = int(np.flatnonzero(~np.isfinite(state))[0])
        raise InvalidObservation(
            f"{path}[{index}] ({spec.names[index]}): expected a finite float32 number, got {values[index]!r}",
            expected="a finite float32 number",
            received=repr(values[index]),
            action="Leave out or repair readings that are not finite before sending them.",
        )
    return state
