"""MuJoCo's physics of a ball among boxes, compiled: semi-implicit Euler, implicit damping, soft frictionless contacts.

The equations are those of the "Computation" chapter of MuJoCo's documentation, written for one body on two slide joints.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

MAX_CONTACTS = 9
MAX_SWEEPS = 200
FORCE_TOLERANCE_N = 1e-7


class BallPhysics(NamedTuple):
    """Constants of the ball and its contacts. Lengths in m, times in s, masses in kg, forces in N."""

    timestep_s: float
    mass: float
    damping: float
    gear: float
    radius: float
    max_speed: float
    inverse_weight: float
    margin: float
    stiffness: float
    contact_damping: float
    impedance_min: float
    impedance_max: float
    impedance_width: float


@njit(cache=True)
def _find_contacts(x: float, y: float, walls: NDArray[np.uint8], physics: BallPhysics, contacts: NDArray[np.float64]) -> int:
    """Write (distance, normal x, normal y) of each wall box within reach to ``contacts`` [MAX_CONTACTS, 3]; return how many."""
    reach = physics.radius + physics.margin
    count = 0
    row, column = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    for i in range(max(row - 1, 0), min(row + 2, walls.shape[0])):
        for j in range(max(column - 1, 0), min(column + 2, walls.shape[1])):
            if walls[i, j] == 0:
                continue
            dx, dy = x - i, y - j
            offset_x, offset_y = dx - min(max(dx, -0.5), 0.5), dy - min(max(dy, -0.5), 0.5)
            gap = np.sqrt(offset_x * offset_x + offset_y * offset_y)
            if gap >= reach:
                continue
            if gap > 1e-15:
                contacts[count, 0] = gap - physics.radius
                contacts[count, 1] = offset_x / gap
                contacts[count, 2] = offset_y / gap
            else:  # the centre is inside the box: out through the nearest face
                along_x = abs(dx) > abs(dy)
                contacts[count, 0] = max(abs(dx), abs(dy)) - 0.5 - physics.radius
                contacts[count, 1] = (1.0 if dx > 0 else -1.0) if along_x else 0.0
                contacts[count, 2] = 0.0 if along_x else (1.0 if dy > 0 else -1.0)
            count += 1
    return count


@njit(cache=True)
def _impedance(violation: float, physics: BallPhysics) -> float:
    """MuJoCo's ``solimp`` curve with midpoint 0.5 and power 2, at a signed constraint violation."""
    depth = min(abs(violation) / physics.impedance_width, 1.0)
    rise = 2.0 * depth * depth if depth <= 0.5 else 1.0 - 2.0 * (1.0 - depth) * (1.0 - depth)
    return physics.impedance_min + rise * (physics.impedance_max - physics.impedance_min)


@njit(cache=True)
def _contact_force(
    contacts: NDArray[np.float64], count: int, velocity: tuple[float, float], acceleration: tuple[float, float], physics: BallPhysics
) -> tuple[float, float]:
    """Solve min_f 1/2 f (A + R) f + f b with f >= 0 by projected Gauss-Seidel; one contact needs one division. Returns the force [x, y]."""
    offset, regulariser, force = np.empty(MAX_CONTACTS), np.empty(MAX_CONTACTS), np.zeros(MAX_CONTACTS)
    for i in range(count):
        violation, normal_x, normal_y = contacts[i, 0] - physics.margin, contacts[i, 1], contacts[i, 2]
        impedance = _impedance(violation, physics)
        speed = normal_x * velocity[0] + normal_y * velocity[1]
        # a_ref = -b v - k d r  (r the violation, d the impedance)
        reference = -physics.contact_damping * speed - physics.stiffness * impedance * violation
        offset[i] = normal_x * acceleration[0] + normal_y * acceleration[1] - reference
        regulariser[i] = (1.0 - impedance) / impedance * physics.inverse_weight
    force_x, force_y = 0.0, 0.0
    for _ in range(MAX_SWEEPS if count > 1 else 1):
        change = 0.0
        for i in range(count):
            normal_x, normal_y = contacts[i, 1], contacts[i, 2]
            residual = (normal_x * force_x + normal_y * force_y) / physics.mass + regulariser[i] * force[i] + offset[i]
            updated = max(0.0, force[i] - residual / (1.0 / physics.mass + regulariser[i]))
            force_x += (updated - force[i]) * normal_x
            force_y += (updated - force[i]) * normal_y
            change = max(change, abs(updated - force[i]))
            force[i] = updated
        if change < FORCE_TOLERANCE_N:
            break
    return force_x, force_y


@njit(cache=True)
def step_balls(
    states: NDArray[np.floating], actions: NDArray[np.floating], walls: NDArray[np.uint8], physics: BallPhysics, out: NDArray[np.floating]
) -> None:
    """One physics step: ``states`` [B, 4] (x, y, vx, vy) and ``actions`` [B, 2] -> ``out`` [B, 4]. ``out`` may be ``states``."""
    contacts = np.empty((MAX_CONTACTS, 3))
    step_s = physics.timestep_s
    for k in range(states.shape[0]):
        x, y = float(states[k, 0]), float(states[k, 1])
        vx = min(max(float(states[k, 2]), -physics.max_speed), physics.max_speed)
        vy = min(max(float(states[k, 3]), -physics.max_speed), physics.max_speed)
        force_x = physics.gear * min(max(float(actions[k, 0]), -1.0), 1.0) - physics.damping * vx
        force_y = physics.gear * min(max(float(actions[k, 1]), -1.0), 1.0) - physics.damping * vy
        count = _find_contacts(x, y, walls, physics, contacts)
        if count > 0:
            smooth = (force_x / physics.mass, force_y / physics.mass)
            push_x, push_y = _contact_force(contacts, count, (vx, vy), smooth, physics)
            force_x += push_x
            force_y += push_y
        # (M + h B) a = force, damping implicit;  v' = v + h a;  x' = x + h v'
        vx += step_s * force_x / (physics.mass + step_s * physics.damping)
        vy += step_s * force_y / (physics.mass + step_s * physics.damping)
        out[k, 0], out[k, 1], out[k, 2], out[k, 3] = x + step_s * vx, y + step_s * vy, vx, vy
