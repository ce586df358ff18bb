"""The maze with episodes of 60 steps, for a pipeline at toy size: ``tests.benchmarks.short_maze:skillet/ShortMaze-v0``."""

from gymnasium.envs.registration import register

register(id="skillet/ShortMaze-v0", entry_point="clients.simulator.envs.maze:PointMazeEnv", max_episode_steps=60)
