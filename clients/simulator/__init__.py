"""Simulated robots as Gymnasium environments; importing this package registers them under the ``skillet`` namespace."""

from farama_notifications import notifications
from gymnasium.envs.registration import register

# Gymnasium-Robotics prints a note about its hand environments wherever it is imported; the kitchen is not concerned.
notifications.pop("gymnasium_robotics", None)

register(
    id="skillet/PointMaze-v0",
    entry_point="clients.simulator.envs.maze:PointMazeEnv",
    max_episode_steps=2000,
)
register(
    id="skillet/Kitchen-v0",
    entry_point="clients.simulator.envs.kitchen:SkilletKitchenEnv",
    max_episode_steps=280,
)
