"""The point maze, many episodes at once: the dynamics of ``skillet/PointMaze-v0`` without MuJoCo's cost a step."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from training.simulators.point_contact import BallPhysics, step_balls

MAZE_ENV_ID = "clients.simulator:skillet/PointMaze-v0"


class MazeStep(NamedTuple):
    """Outcome of one step of every episode."""

    states: NDArray[np.floating]  # [B, 4]
    rewards: NDArray[np.float32]  # [B]
    terminated: NDArray[np.bool_]  # [B]


class MazeSimulator:
    """Steps ``B`` mazes of one layout. States are rows (x, y, vx, vy) in m and m/s, as the environment's observation."""

    def __init__(
        self,
        layout: list[str],
        physics: BallPhysics,
        *,
        start: tuple[int, int],
        start_noise: float,
        goal_radius: float,
        episode_steps: int,
    ) -> None:
        self.layout = list(layout)
        self.physics = physics
        self.start = np.asarray(start, dtype=np.float64)
        self.start_noise = start_noise
        self.goal_radius = goal_radius
        self.episode_steps = episode_steps
        self.walls = np.array([[cell == "#" for cell in row] for row in layout], dtype=np.uint8)

    @classmethod
    def from_env(cls, env_id: str = MAZE_ENV_ID) -> "MazeSimulator":
        """Build the simulator from the environment itself: its layout, task rules and MuJoCo model."""
        env = gym.make(env_id)
        spec = env.spec
        if spec is None or spec.max_episode_steps is None:
            raise ValueError(f"expected {env_id} to be registered with max_episode_steps, it has none")
        simulator = cls(
            env.get_wrapper_attr("layout"),
            _read_physics(env.get_wrapper_attr("model"), env.get_wrapper_attr("max_speed")),
            start=env.get_wrapper_attr("start"),
            start_noise=env.get_wrapper_attr("start_noise"),
            goal_radius=env.get_wrapper_attr("goal_radius"),
            episode_steps=spec.max_episode_steps,
        )
        env.close()
        return simulator

    def reset(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Draw ``count`` start states [B, 4] from the environment's start distribution."""
        states = np.empty((count, 4))
        states[:, :2] = self.start + rng.uniform(-self.start_noise, self.start_noise, (count, 2))
        states[:, 2:] = rng.normal(0.0, 0.1, (count, 2))
        return states

    def step(self, states: NDArray[np.floating], actions: NDArray[np.floating]) -> NDArray[np.floating]:
        """Next states [B, 4] after one 0.01 s step with ``actions`` [B, 2], in the dtype of ``states``; the input is left as it was."""
        if states.ndim != 2 or states.shape[1] != 4 or actions.shape != (len(states), 2):
            raise ValueError(f"expected states [B, 4] and actions [B, 2], got {states.shape} and {actions.shape}")
        following = np.empty_like(states)
        step_balls(states, actions, self.walls, self.physics, following)
        return following

    def step_tasks(self, states: NDArray[np.floating], actions: NDArray[np.floating], goals: NDArray[np.floating]) -> MazeStep:
        """As ``step``, with the reward (1.0 within the goal radius of ``goals`` [B, 2], else 0.0) and the termination with it."""
        following = self.step(states, actions)
        reached = self.reached(following, goals)
        return MazeStep(following, reached.astype(np.float32), reached)

    def reached(self, states: NDArray[np.floating], goals: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each state [..., 4] lies within the goal radius of its goal [..., 2]."""
        offsets = states[..., :2] - goals
        return (offsets * offsets).sum(-1) <= self.goal_radius**2


def _read_physics(model: Any, max_speed: float) -> BallPhysics:
    """Constants of the compiled MuJoCo model; contact parameters are those of the walls, which the ball shares."""
    ball, wall = model.geom("ball").id, model.geom("wall_0_0").id
    body = model.body("ball").id
    timestep = float(model.opt.timestep)
    time_constant, damping_ratio = float(model.geom_solref[wall][0]), float(model.geom_solref[wall][1])
    impedance_min, impedance_max, width, *shape = (float(value) for value in model.geom_solimp[wall])
    if shape != [0.5, 2.0] or not np.array_equal(model.geom_solimp[ball], model.geom_solimp[wall]):
        raise ValueError(f"expected one solimp with midpoint 0.5 and power 2 for ball and walls, got {model.geom_solimp[[ball, wall]]}")
    time_constant = max(time_constant, 2.0 * timestep)
    return BallPhysics(
        timestep_s=timestep,
        mass=float(model.body_mass[body]),
        damping=float(model.dof_damping[0]),
        gear=float(model.actuator_gear[0, 0]),
        radius=float(model.geom_size[ball, 0]),
        max_speed=max_speed,
        inverse_weight=float(model.body_invweight0[body, 0]),
        margin=float(model.geom_margin[ball] + model.geom_margin[wall]),
        # standard solref: b = 2 / (d_max tau), k = 1 / (d_max tau zeta)^2
        stiffness=1.0 / (impedance_max * time_constant * damping_ratio) ** 2,
        contact_damping=2.0 / (impedance_max * time_constant),
        impedance_min=impedance_min,
        impedance_max=impedance_max,
        impedance_width=width,
    )
