"""Reward-free trajectories through the maze: shortest paths between random places, followed by a waypoint controller.

Starts lie anywhere inside cells and the velocity is kicked at random times, so that the data also hold what a policy needs after it has
left the paths: without either, skills learned from these data explore half as far.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from training.data import Episode
from training.simulators.maze import MazeSimulator

NEIGHBOURS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])


class MazeCollectConfig(BaseModel):
    """How the maze's trajectories are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    episodes: int = Field(3000, gt=0, description="trajectories to keep")
    seed: int = Field(0, ge=0)
    max_steps: int = Field(1600, gt=0, description="a trajectory is cut here when its goal is not reached")
    min_steps: int = Field(50, gt=0, description="shorter trajectories are dropped")
    action_noise: float = Field(0.1, ge=0, description="standard deviation of the noise on each action")
    kick_rate: float = Field(0.01, ge=0, le=1, description="chance of a velocity kick at each step")
    kick_speed: float = Field(2.0, ge=0, description="standard deviation of a kick along each axis, m/s")
    start_spread: float = Field(0.38, ge=0, le=0.39, description="a start lies within this of its cell's centre along each axis, m")
    waypoint_jitter: float = Field(0.2, ge=0, le=0.35, description="a waypoint lies within this of its cell's centre along each axis, m")
    waypoint_radius: float = Field(0.1, gt=0, description="distance at which a waypoint counts as reached, m")
    position_gain: float = Field(10.0, gt=0, description="1/m")
    velocity_gain: float = Field(1.0, ge=0, description="s/m")


def collect_maze(config: MazeCollectConfig, simulator: MazeSimulator | None = None) -> list[Episode]:
    """Make ``config.episodes`` trajectories, all at once in the vectorised simulator.

    Returns:
        Episodes of ``min_steps`` to ``max_steps`` steps: observations (x, y, vx, vy) in m and m/s, actions in [-1, 1]. The same
        configuration always gives the same ones.
    """
    rng = np.random.default_rng(config.seed)
    simulator = simulator or MazeSimulator.from_env()
    planner = GridPlanner(simulator.walls, (int(simulator.start[0]), int(simulator.start[1])))
    episodes: list[Episode] = []
    while len(episodes) < config.episodes:
        count = max(8, int(1.1 * (config.episodes - len(episodes))))
        episodes += [episode for episode in _roll_out(config, simulator, planner, rng, count) if len(episode) >= config.min_steps]
    return episodes[: config.episodes]


class GridPlanner:
    """Shortest paths between the free cells of a grid that are connected to one of them.

    Args:
        walls: [rows, columns], non-zero in walls, with a closed border.
        start: a free cell; only the cells connected to it are planned for.
    """

    def __init__(self, walls: NDArray[np.uint8], start: tuple[int, int]) -> None:
        self.cells = np.argwhere(_distances_from(walls, start) >= 0)  # [C, 2]
        # [C, rows, columns]: steps to each cell, -1 in walls
        self.distances = np.stack([_distances_from(walls, (int(row), int(column))) for row, column in self.cells])

    def next_cells(self, goals: NDArray[np.intp], cells: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """The next cell [B, 2] on a shortest path from ``cells`` [B, 2] to ``goals`` [B] (rows of ``self.cells``); ties fall at random."""
        candidates = cells[:, None, :] + NEIGHBOURS  # [B, 4, 2]
        here = self.distances[goals, cells[:, 0], cells[:, 1]]
        there = self.distances[goals[:, None], candidates[..., 0], candidates[..., 1]]  # [B, 4]
        nearer = there == here[:, None] - 1
        choice = np.argmax(nearer * rng.uniform(0.5, 1.0, nearer.shape), axis=1)
        return np.where(here[:, None] > 0, candidates[np.arange(len(cells)), choice], cells)


def _distances_from(walls: NDArray[np.uint8], source: tuple[int, int]) -> NDArray[np.int32]:
    """Steps from ``source`` to every cell [rows, columns]; -1 where it cannot be reached."""
    distances = np.full(walls.shape, -1, np.int32)
    distances[source] = 0
    queue = deque([source])
    while queue:
        row, column = queue.popleft()
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if not walls[cell] and distances[cell] < 0:
                distances[cell] = distances[row, column] + 1
                queue.append(cell)
    return distances


class Follower:
    """Waypoint controllers of ``B`` episodes: each heads for a jittered point in the next cell of its path.

    Args:
        config: gains, noise and waypoints.
        planner: shortest paths.
        goals: [B], rows of ``planner.cells``.
        cells: [B, 2], where the episodes start.
    """

    def __init__(self, config: MazeCollectConfig, planner: GridPlanner, goals: NDArray[np.intp], cells: NDArray[np.intp]) -> None:
        self.config, self.planner, self.goals = config, planner, goals
        self.came_from, self.heading = cells.copy(), cells.copy()
        self.waypoints = cells.astype(np.float64)

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Forget the episodes that are over."""
        self.goals, self.came_from = self.goals[mask], self.came_from[mask]
        self.heading, self.waypoints = self.heading[mask], self.waypoints[mask]

    def aim(self, cells: NDArray[np.intp], chosen: NDArray[np.bool_], rng: np.random.Generator) -> None:
        """Give the ``chosen`` episodes, now in ``cells``, their next waypoint."""
        following = self.planner.next_cells(self.goals[chosen], cells[chosen], rng)
        jitter = rng.uniform(-self.config.waypoint_jitter, self.config.waypoint_jitter, following.shape)
        self.came_from[chosen], self.heading[chosen] = cells[chosen], following
        self.waypoints[chosen] = following + jitter

    def actions(self, states: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Actions [B, 2] from states [B, 4], and which episodes have arrived [B]."""
        cells = np.rint(states[:, :2]).astype(np.intp)
        close = np.hypot(*(self.waypoints - states[:, :2]).T) < self.config.waypoint_radius
        at_goal = (self.heading == self.planner.cells[self.goals]).all(1)
        # A kick can throw the ball into a third cell, from where the straight line to the waypoint may cross a wall: plan anew.
        lost = (cells != self.heading).any(1) & (cells != self.came_from).any(1)
        arrived = close & at_goal
        if (replan := (close | lost) & ~arrived).any():
            self.aim(cells, replan, rng)
        push = self.config.position_gain * (self.waypoints - states[:, :2]) - self.config.velocity_gain * states[:, 2:]
        noise = rng.normal(0.0, self.config.action_noise, push.shape)
        return np.clip(np.clip(push, -1, 1) + noise, -1, 1).astype(np.float32), arrived


def _roll_out(
    config: MazeCollectConfig, simulator: MazeSimulator, planner: GridPlanner, rng: np.random.Generator, count: int
) -> list[Episode]:
    """``count`` trajectories in lock-step; episodes that are over leave the batch."""
    starts, goals = rng.integers(len(planner.cells), size=(2, count))
    states = np.empty((count, 4))
    states[:, :2] = planner.cells[starts] + rng.uniform(-config.start_spread, config.start_spread, (count, 2))
    states[:, 2:] = rng.normal(0.0, config.kick_speed, (count, 2))
    follower = Follower(config, planner, goals, planner.cells[starts])
    follower.aim(planner.cells[starts], np.ones(count, bool), rng)
    observations = np.zeros((count, config.max_steps + 1, 4), np.float32)
    actions = np.zeros((count, config.max_steps, 2), np.float32)
    lengths = np.full(count, config.max_steps)
    running = np.arange(count)
    observations[:, 0] = states
    for step in range(config.max_steps):
        chosen, arrived = follower.actions(states, rng)
        if arrived.any():
            lengths[running[arrived]] = step
            follower.keep(~arrived)
            running, states, chosen = running[~arrived], states[~arrived], chosen[~arrived]
        if not len(running):
            break
        states = simulator.step(states, chosen)
        kicked = np.flatnonzero(rng.random(len(states)) < config.kick_rate)
        kicks = rng.normal(0.0, config.kick_speed, (len(kicked), 2))
        states[kicked, 2:] = np.clip(states[kicked, 2:] + kicks, -simulator.physics.max_speed, simulator.physics.max_speed)
        actions[running, step], observations[running, step + 1] = chosen, states
    return [Episode(observations[i, : n + 1].copy(), actions[i, :n].copy()) for i, n in enumerate(lengths)]
