"""A seven-joint arm with a gripper in a kitchen, simulated by MuJoCo through Gymnasium-Robotics."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium_robotics.envs.franka_kitchen import KitchenEnv
from numpy.typing import NDArray

from clients.simulator.envs.offscreen import OffscreenRenderer
from clients.simulator.subtasks import SubtaskOrder, load_kitchen

CONTROL_PERIOD_S = 0.08
PICTURE_SIZE = 480
CAMERA = {"distance": 2.4, "azimuth": 70.0, "elevation": -25.0, "lookat": (-0.2, 0.5, 2.05)}
"""Where pictures are taken from: distance in m, angles in degrees."""
LIMIT_MARGIN = 0.1
"""How far past a joint's limit an observation may lie (soft limits and noise), rad or m."""
KETTLE_REACH_M = 5.0

OBSERVATION = [
    *((f"arm joint {joint}", "rad") for joint in range(1, 8)),
    ("finger 1", "m"), ("finger 2", "m"),
    ("knob 1", "rad"), ("burner 1", "m"), ("knob 2, bottom burner", "rad"), ("burner 2, bottom burner", "m"),
    ("knob 3", "rad"), ("burner 3", "m"), ("knob 4, top burner", "rad"), ("burner 4, top burner", "m"),
    ("light switch", "rad"), ("light", "m"), ("slide cabinet", "m"), ("left hinge cabinet", "rad"), ("right hinge cabinet", "rad"),
    ("microwave", "rad"), ("kettle x", "m"), ("kettle y", "m"), ("kettle z", "m"),
    ("kettle quaternion w", "1"), ("kettle quaternion x", "1"), ("kettle quaternion y", "1"), ("kettle quaternion z", "1"),
]  # fmt: skip
ACTION = [*((f"arm joint {joint}", "2 rad/s") for joint in range(1, 8)), ("finger 1", "2 m/s"), ("finger 2", "2 m/s")]


class SkilletKitchenEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Finish four subtasks in an order that the arm is not told.

    Robot, kitchen and noise are those of Gymnasium-Robotics' ``FrankaKitchen-v1``; tasks and reward are those of "Skill-based
    Meta-Reinforcement Learning" (ICLR 2022), section 5.1. The subtasks are ``bottom burner``, ``top burner``, ``light switch``,
    ``slide cabinet``, ``hinge cabinet``, ``microwave`` and ``kettle``; a task is any four of them in any order.

    Observation, ``Box(30,) float32``: MuJoCo's ``qpos`` with the simulator's sensor noise (uniform, at most 1 mrad on the arm, 50 um on
    objects), clipped to the limits below. Velocities and the goal, which is the same in every task, are not part of it.

    | index | name | unit | low | high | MuJoCo joint |
    |---|---|---|---|---|---|
    | 0-6 | arm joints 1 to 7 | rad | limit - 0.1 | limit + 0.1 | ``robot:panda0_joint1`` to ``7`` |
    | 7, 8 | fingers 1 (left) and 2 (right), 0 closed | m | -0.1 | 0.14 | ``robot:panda0_finger_joint1``, ``2`` |
    | 9, 10 | knob 1 and burner 1 | rad, m | -1.67, -0.109 | 0.1 | ``knob_Joint_1``, ``bottom_right_burner`` |
    | 11, 12 | knob 2 and burner 2: bottom burner | rad, m | -1.67, -0.109 | 0.1 | ``knob_Joint_2``, ``bottom_left_burner`` |
    | 13, 14 | knob 3 and burner 3 | rad, m | -1.67, -0.109 | 0.1 | ``knob_Joint_3``, ``top_right_burner`` |
    | 15, 16 | knob 4 and burner 4: top burner | rad, m | -1.67, -0.109 | 0.1 | ``knob_Joint_4``, ``top_left_burner`` |
    | 17, 18 | light switch and light | rad, m | -0.8, -0.15 | 0.1 | ``light_switch``, ``light_joint`` |
    | 19 | slide cabinet, 0 closed | m | -0.1 | 0.54 | ``slide_cabinet`` |
    | 20 | left door of the hinge cabinet, 0 closed | rad | -1.67 | 0.1 | ``left_hinge_cabinet`` |
    | 21 | right door of the hinge cabinet, 0 closed | rad | -0.1 | 1.67 | ``right_hinge_cabinet`` |
    | 22 | microwave door, 0 closed | rad | -2.194 | 0.1 | ``microwave`` |
    | 23-25 | kettle position x, y, z in the world | m | -5 | 5 | ``kettle`` |
    | 26-29 | kettle orientation, quaternion w, x, y, z | 1 | -1.1 | 1.1 | ``kettle`` |

    Action, ``Box(9,) float32``: velocities, beyond the limits clipped. The position servos are told the last observed position plus
    0.08 s of this velocity, and follow about half of the way in a step.

    | index | name | unit | low | high | MuJoCo actuator |
    |---|---|---|---|---|---|
    | 0-6 | arm joints 1 to 7 | 2 rad/s | -1 | 1 | position servo of ``robot:panda0_joint1`` to ``7`` |
    | 7, 8 | fingers 1 and 2, positive opens | 2 m/s | -1 | 1 | position servo of ``robot:panda0_finger_joint1``, ``2`` |

    Start: always the same posture and kitchen, but for the sensor noise. Reward: 1.0 for each subtask on the step that finishes it; a
    subtask is finished when those listed before it are and its entries lie within 0.3 (L2 norm) of their goal, so that one done early
    pays together with its predecessors. Terminated when all four are finished; truncated after 280 steps (22.4 s) by the time limit in
    the registration. Without a task there is no reward and no termination. ``info`` has ``completed`` (names to the step, counted from 1,
    that finished them), ``success``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 12,
        "control_period_s": CONTROL_PERIOD_S,
        "observation": OBSERVATION,
        "action": ACTION,
    }

    def __init__(self, subtasks: Sequence[str] | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"expected render_mode None or 'rgb_array', got {render_mode!r}")
        self.kitchen = load_kitchen()
        self.task = None if subtasks is None else self.kitchen.check_task(subtasks)
        self.render_mode = render_mode
        # Its own tasks and rewards are not used: they know no order.
        self.simulation = KitchenEnv(tasks_to_complete=[], terminate_on_tasks_completed=False, remove_task_when_completed=False)
        self.model, self.data = self.simulation.model, self.simulation.data
        self.observation_space = gym.spaces.Box(*_limits(self.model), dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (len(ACTION),), np.float32)
        self._renderer: OffscreenRenderer | None = None
        self._shown: Any = None  # a state of its own for pictures of observations
        self._steps = 0
        self._completed: dict[str, int] = {}

    def tasks(self, split: str) -> list[SubtaskOrder]:
        """The tasks of a split, ``train``, ``train-sisl`` or ``test``; a wrong name lists them all."""
        return list(self.kitchen.tasks(split))

    def judge(
        self, path: NDArray[np.floating], tasks: Sequence[SubtaskOrder]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.bool_]]:
        """What a path of observations [n + 1, 30] would have earned in each task: rewards [T, n], steps until its end [T], success [T]."""
        return self.kitchen.judge(path, tasks)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; there are no options."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"expected no reset options, got {sorted(options)}")
        noisy, _ = self.simulation.reset(seed=seed)
        self._steps, self._completed = 0, {}
        return self._observation(noisy), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Apply velocities for one control period of 0.08 s.

        Raises:
            ValueError: the action is not nine finite numbers.
        """
        velocities = np.asarray(action, np.float64)
        if velocities.shape != (len(ACTION),) or not np.isfinite(velocities).all():
            raise ValueError(f"expected {len(ACTION)} finite velocities in [-1, 1], got {action!r}")
        noisy, *_ = self.simulation.step(velocities)
        self._steps += 1
        observation = self._observation(noisy)
        reward = self._advance(observation)
        info = self._info()
        return observation, reward, info["success"], False, info

    def render(self) -> NDArray[np.uint8] | None:
        """Picture of the kitchen from behind the arm, RGB [480, 480, 3]; None without ``render_mode``."""
        return None if self.render_mode is None else self._drawn(self.data)

    def draw(self, observation: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Picture of the kitchen as an observation [30] has it, RGB [480, 480, 3]. The running episode stays as it is.

        Raises:
            RuntimeError: there is no graphics library; the message says what to install.
        """
        if self._shown is None:
            self._shown = mujoco.MjData(self.model)
        self._shown.qpos[:] = observation
        return self._drawn(self._shown)

    def close(self) -> None:
        """Free what rendering holds."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.simulation.close()

    def _drawn(self, data: Any) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self.model, _camera(), width=PICTURE_SIZE, height=PICTURE_SIZE)
        return self._renderer.render(data)

    def _advance(self, observation: NDArray[np.float32]) -> float:
        """Note the subtasks that this observation finishes, and say how many they are."""
        if self.task is None:
            return 0.0
        before = len(self._completed)
        finished = self.kitchen.pay(self.kitchen.done(observation), self.task, before)
        self._completed |= dict.fromkeys(self.task[before:finished], self._steps)
        return float(finished - before)

    def _observation(self, noisy: dict[str, Any]) -> NDArray[np.float32]:
        """Positions of robot and objects; the simulation's vector is robot qpos (9), qvel (9), objects' qpos (21), qvel (20)."""
        full = noisy["observation"]
        positions = np.concatenate([full[:9], full[18:39]]).astype(np.float32)
        box = self.observation_space
        assert isinstance(box, gym.spaces.Box)
        return np.clip(positions, box.low, box.high)

    def _info(self) -> dict[str, Any]:
        return {"completed": dict(self._completed), "success": self.task is not None and len(self._completed) == len(self.task)}


def _limits(model: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    hinges_and_slides = model.jnt_range[model.jnt_type != mujoco.mjtJoint.mjJNT_FREE]
    kettle = np.array([KETTLE_REACH_M] * 3 + [1.0 + LIMIT_MARGIN] * 4)
    low = np.concatenate([hinges_and_slides[:, 0] - LIMIT_MARGIN, -kettle])
    high = np.concatenate([hinges_and_slides[:, 1] + LIMIT_MARGIN, kettle])
    return low.astype(np.float32), high.astype(np.float32)


def _camera() -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = CAMERA["lookat"]
    camera.distance, camera.azimuth, camera.elevation = CAMERA["distance"], CAMERA["azimuth"], CAMERA["elevation"]
    return camera
