"""The kitchen's arm under differential inverse kinematics: poses of the hand and postures of the joints become velocity actions."""

from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import mink
import mujoco
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

OPEN, CLOSED = (1.0, 1.0), (-1.0, -1.0)
SITE = "end_effector"
"""5 cm behind the fingertips; its z points away from the wrist, its y along the opening of the fingers."""
ACTION_SCALE = 0.16
"""What an action of 1 adds to the servos' target: 0.08 s at 2 rad/s."""
STIFFNESS = np.array([870.0] * 4 + [120.0] * 3)
"""Proportional gain of each servo, N m/rad."""
FOLLOWED = 1 - np.exp(-0.08 * STIFFNESS / np.array([100.0] * 4 + [10.0] * 3))
"""Share of the way to its target that each joint makes in a control period: stiffness against damping, inertia neglected."""
MAX_STEP = FOLLOWED * ACTION_SCALE
"""Largest displacement of each joint in a control period, rad."""
MAX_TURN = 0.5
"""Largest rotation of the hand that is asked for in a control period, rad."""
DAMPING = 3e-4
HOME = np.array([0.15, -1.76, 1.84, -2.48, 0.26, 0.71, 1.6])
"""Posture at the start of an episode, rad."""
HOME_COST = 0.02
"""How much joints are drawn towards that posture, m/rad: it decides what the hand's pose leaves open (seven joints, six numbers)."""
KITCHEN_MODEL = "gymnasium_robotics/envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"


@dataclass(frozen=True)
class Pose:
    """Where the hand should go: position in m, rotation [3, 3] of the site in the world, speed in m/s, weight of rotation in m/rad."""

    position: Vector
    rotation: Vector
    fingers: tuple[float, float] = OPEN
    speed: float = 1.2
    weight: float = 0.15


@dataclass(frozen=True)
class Posture:
    """Where the seven joints should go, rad."""

    joints: Vector
    fingers: tuple[float, float] = OPEN


def arm_model() -> Any:
    """The arm of Gymnasium-Robotics' kitchen by itself, without its fingers: seven joints."""
    # Found, not imported: on import Gymnasium-Robotics prints a note about environments that are not used here.
    spec = mujoco.MjSpec.from_file(str(distribution("gymnasium-robotics").locate_file(KITCHEN_MODEL)))
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    for key in list(spec.keys):
        spec.delete(key)
    for name in ("desk", "kettle", "panda0_leftfinger", "panda0_rightfinger"):
        spec.delete(spec.body(name))
    return spec.compile()


class Arm:
    """Turns targets into actions, one control period at a time. The joints' positions are the observed ones."""

    def __init__(self) -> None:
        self.model = arm_model()
        self._configuration = mink.Configuration(self.model)
        self._task = mink.FrameTask(SITE, "site", position_cost=1.0, orientation_cost=0.15)
        self._home = mink.PostureTask(self.model, cost=HOME_COST, gain=0.1)
        self._home.set_target(HOME)
        self._limits = [mink.ConfigurationLimit(self.model)]
        self._low, self._high = self.model.jnt_range.T

    def act(self, target: Pose | Posture, joints: Vector, bias: Vector) -> Vector:
        """The action [9] that brings the arm nearer to a target.

        Args:
            target: hand pose or posture.
            joints: observed positions [7], rad.
            bias: gravity and velocity torques [7] that the servos have to hold, N m. The model has no gravity compensation, and the
                servos' target starts anew from the observed position in each step, so that without this term the arm sags.
        """
        wanted = self._step(target, joints) if isinstance(target, Pose) else target.joints - joints
        wanted = wanted / max(1.0, float(np.max(np.abs(wanted) / MAX_STEP)))
        arm = (wanted / FOLLOWED + bias / STIFFNESS) / ACTION_SCALE
        return np.concatenate([arm, target.fingers])

    def _step(self, pose: Pose, joints: Vector) -> Vector:
        """Displacement [7] of the joints towards a pose, damped least squares within the joints' limits."""
        self._configuration.update(np.clip(joints, self._low, self._high))
        here = self._configuration.get_transform_frame_to_world(SITE, "site")
        offset = pose.position - here.translation()
        distance = max(float(np.linalg.norm(offset)), 1e-9)
        position = here.translation() + offset * min(1.0, pose.speed * 0.08 / distance)
        turn = (mink.SO3.from_matrix(pose.rotation) @ here.rotation().inverse()).log()
        turn = turn * min(1.0, MAX_TURN / max(float(np.linalg.norm(turn)), 1e-9))
        rotation = mink.SO3.exp(turn) @ here.rotation()
        self._task.set_orientation_cost(pose.weight)
        self._task.set_target(mink.SE3.from_rotation_and_translation(rotation, position))
        return mink.solve_ik(self._configuration, [self._task, self._home], 1.0, "daqp", damping=DAMPING, limits=self._limits)


def facing(approach: tuple[float, float, float]) -> Vector:
    """Rotation [3, 3] of a hand that points along ``approach`` and opens its fingers along the world's x."""
    z = np.asarray(approach) / np.linalg.norm(approach)
    y = np.array([1.0, 0.0, 0.0]) - z[0] * z
    y /= np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=1)


def turned(axis: int, angle: float, rotation: Vector) -> Vector:
    """``rotation`` turned by ``angle`` rad about a world axis (0, 1, 2)."""
    return mink.SO3.exp(angle * np.eye(3)[axis]).as_matrix() @ rotation
