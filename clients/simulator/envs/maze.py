"""A force-driven ball in a 20 x 20 maze, simulated by MuJoCo."""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from numpy.typing import NDArray

from clients.simulator.envs.offscreen import OffscreenRenderer
from clients.simulator.layout import WALL, Cell, load_maze

MAX_SPEED = 5.0
"""Speed in m/s to which each axis is clipped before a physics step."""
TIMESTEP_S = 0.01
PICTURE_SIZE = 480
RESET_OPTIONS = ("start", "velocity")


def maze_mjcf(layout: tuple[str, ...]) -> str:
    """MJCF of the ball and the maze: x is the row, y the column, one metre a cell side, cells centred at whole numbers."""
    walls = "\n".join(
        f'      <geom name="wall_{row}_{column}" type="box" pos="{row} {column} 0" size=".5 .5 .5" margin=".002" rgba=".32 .36 .44 1"/>'
        for row, cells in enumerate(layout)
        for column, cell in enumerate(cells)
        if cell == WALL
    )
    centre_x, centre_y = (len(layout) - 1) / 2, (len(layout[0]) - 1) / 2
    return f"""
<mujoco model="point_maze">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="{TIMESTEP_S}" gravity="0 0 0" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom condim="1" density="1000" contype="2" conaffinity="1" solref=".02 1" solimp=".9 .95 .001"/>
    <motor ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </default>
  <visual><global offwidth="1024" offheight="1024"/><headlight ambient=".55 .55 .55" diffuse=".45 .45 .45" specular="0 0 0"/></visual>
  <worldbody>
    <light pos="{centre_x} {centre_y} 30" dir="0 0 -1" castshadow="false"/>
    <camera name="top" pos="{centre_x} {centre_y} 30" xyaxes="0 1 0 -1 0 0" fovy="41"/>
    <geom name="floor" type="plane" pos="{centre_x} {centre_y} -.5" size="12 12 .1" rgba=".93 .93 .90 1" contype="0" conaffinity="0"/>
    <body name="walls">
{walls}
    </body>
    <body name="ball">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom name="ball" type="sphere" size=".1" contype="1" conaffinity="2" rgba=".80 .20 .12 1"/>
      <site name="marker" type="cylinder" size=".3 .01" rgba=".85 .25 .15 .8"/>
    </body>
    <site name="goal" type="cylinder" size="1 .01" pos="0 0 -.4" rgba=".2 .7 .3 0"/>
  </worldbody>
  <actuator>
    <motor name="x" joint="x"/>
    <motor name="y" joint="y"/>
  </actuator>
</mujoco>"""


class PointMazeEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Push a ball through a maze to a goal cell that it is not told.

    The maze and its tasks are those of "Skill-based Meta-Reinforcement Learning" (ICLR 2022), section 5.1; the physics are those of D4RL's
    maze2d. The start is always the same cell and the goal is the task.

    Observation, ``Box(4,) float32``:

    | index | name | unit | low | high | MuJoCo |
    |---|---|---|---|---|---|
    | 0 | x, along the rows (downwards in a picture) | m | 0 | 21 | joint ``x``, qpos |
    | 1 | y, along the columns (to the right) | m | 0 | 21 | joint ``y``, qpos |
    | 2 | vx | m/s | -10 | 10 | joint ``x``, qvel |
    | 3 | vy | m/s | -10 | 10 | joint ``y``, qvel |

    A cell is one metre wide and cell (row, column) is centred at position (row, column). Velocities are clipped to 5 m/s *before* each
    step, so one step's push or rebound can carry them past that in an observation (6.7 m/s at most in 12 million random steps).

    Action, ``Box(2,) float32``:

    | index | name | unit | low | high | MuJoCo |
    |---|---|---|---|---|---|
    | 0 | force along x | 100 N | -1 | 1 | motor ``x`` |
    | 1 | force along y | 100 N | -1 | 1 | motor ``y`` |

    The ball weighs 4.19 kg: a full push is 23.9 m/s^2. Actions outside the limits are clipped.

    Start: cell (10, 10) with each coordinate moved by U(-0.1, 0.1) m, each velocity N(0, 0.1^2) m/s. Reward: 1.0 on the step that comes
    within 1.0 m of the goal's centre, which terminates the episode; 0.0 otherwise. Truncated after 2,000 steps (20 s) by the time
    limit in the registration. Without a goal there is no reward and no termination.

    ``reset`` takes ``options={"start": (x, y), "velocity": (vx, vy)}``, each optional, each exact (without noise).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 100,
        "control_period_s": TIMESTEP_S,
        "observation": [("x", "m"), ("y", "m"), ("vx", "m/s"), ("vy", "m/s")],
        "action": [("force along x", "100 N"), ("force along y", "100 N")],
    }

    def __init__(self, goal: Cell | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"expected render_mode None or 'rgb_array', got {render_mode!r}")
        self.maze = load_maze()
        self.goal = None if goal is None else self.maze.check_cell(goal)
        self.render_mode = render_mode
        self.model = mujoco.MjModel.from_xml_string(maze_mjcf(self.maze.layout))
        self.data = mujoco.MjData(self.model)
        self._renderer: OffscreenRenderer | None = None
        self._shown: Any = None  # a state of its own for pictures of observations
        if self.goal is not None:
            self.model.site("goal").pos[:2] = self.goal
            self.model.site("goal").rgba[3] = 0.6
        rows, columns = len(self.layout), len(self.layout[0])
        low, high = np.array([0, 0, -10, -10], np.float32), np.array([rows - 1, columns - 1, 10, 10], np.float32)
        self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    @property
    def layout(self) -> list[str]:
        """Rows of the maze from top to bottom: ``#`` wall, ``O`` free."""
        return list(self.maze.layout)

    @property
    def max_speed(self) -> float:
        """Speed in m/s to which each axis is clipped before a step."""
        return MAX_SPEED

    @property
    def start(self) -> Cell:
        """The cell where every episode starts."""
        return self.maze.start

    @property
    def start_noise(self) -> float:
        """Largest distance in m of a start from the start cell's centre, along each axis."""
        return self.maze.start_noise

    @property
    def goal_radius(self) -> float:
        """Distance in m from the goal's centre that counts as reached."""
        return self.maze.goal_radius

    @property
    def free_cells(self) -> list[Cell]:
        """The cells that can be reached, hence the possible goals, as (row, column)."""
        return list(self.maze.free_cells)

    def tasks(self, split: str) -> list[Cell]:
        """The goals of a split, e.g. ``train``, ``train_20`` or ``test``; a wrong name lists them all."""
        return list(self.maze.tasks(split))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; see the class for the start distribution and the options."""
        super().reset(seed=seed)
        given = options or {}
        if unknown := set(given) - set(RESET_OPTIONS):
            raise ValueError(f"expected reset options among {RESET_OPTIONS}, got {sorted(unknown)}")
        position = np.add(self.maze.start, self.np_random.uniform(-self.maze.start_noise, self.maze.start_noise, 2))
        velocity = self.np_random.normal(0.0, 0.1, 2)
        if "start" in given:
            position = _pair(given["start"], "start position (x, y) in m")
            self.maze.check_cell(np.round(position), what="start")
        if "velocity" in given:
            velocity = _pair(given["velocity"], "velocity (vx, vy) in m/s")
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = position
        self.data.qvel[:] = np.clip(velocity, -MAX_SPEED, MAX_SPEED)
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Apply a force for one physics step of 0.01 s.

        Raises:
            ValueError: the action is not two finite numbers.
        """
        force = _pair(action, "force of 2 numbers in [-1, 1]")
        np.clip(self.data.qvel, -MAX_SPEED, MAX_SPEED, out=self.data.qvel)
        self.data.ctrl[:] = np.clip(force, -1.0, 1.0)
        mujoco.mj_step(self.model, self.data)
        info = self._info()
        return self._observation(), float(info["success"]), info["success"], False, info

    def render(self) -> NDArray[np.uint8] | None:
        """Picture of the maze from above, RGB [480, 480, 3]: rows downwards, the goal's circle in green; None without ``render_mode``.

        The ball is drawn inside a disc three times its size, which collides with nothing.
        """
        return None if self.render_mode is None else self._drawn(self.data)

    def draw(self, observation: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Picture of the maze as an observation [4] has it, as `render` draws it. The running episode stays as it is.

        Raises:
            RuntimeError: there is no graphics library; the message says what to install.
        """
        if self._shown is None:
            self._shown = mujoco.MjData(self.model)
        self._shown.qpos[:] = observation[:2]
        return self._drawn(self._shown)

    def close(self) -> None:
        """Free what rendering holds."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _drawn(self, data: Any) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self.model, "top", width=PICTURE_SIZE, height=PICTURE_SIZE)
        return self._renderer.render(data)

    def _observation(self) -> NDArray[np.float32]:
        return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        if self.goal is None:
            return {"success": False}
        distance = float(np.hypot(*(self.data.qpos - self.goal)))
        return {"success": distance <= self.maze.goal_radius, "distance": distance}


def _pair(values: Any, what: str) -> NDArray[np.float64]:
    pair = np.asarray(values, dtype=np.float64)
    if pair.shape != (2,) or not np.isfinite(pair).all():
        raise ValueError(f"expected a {what}, both finite; got {values!r}")
    return pair
