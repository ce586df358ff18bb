"""The control loop of a robot, which gets a command in every control period whatever the network does.

``python -m clients.examples.robot_loop [--url URL] [--episodes N]``: the maze stands in for the robot, in real time. Stop the service
while it runs, and start it again: the robot finishes its skill, holds, stops, and goes on with a new episode. Needs onnxruntime.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from clients.sdk import ControlLoop, OnnxDecoder, OutageLadder, SkilletClient
from clients.sdk.errors import RequestTimeout


def run(url: str, robot: gym.Env[Any, Any], *, episodes: int) -> None:
    """Run episodes in a session of its own, at the bundle's control rate."""
    # share_skills: each skill comes with its first action, so that the decoder here can finish it without the service.
    with SkilletClient(url) as client, client.open_session(share_skills=True) as session:
        period_s, horizon = session.specs.control_period_s, session.specs.skill_horizon
        decoder = OnnxDecoder.download(client, session.bundle.name, cache=Path.home() / ".cache/skillet")
        ladder = OutageLadder(stop_action=np.zeros(session.specs.action.dim), finish_skill_s=horizon * period_s, hold_s=1.0)
        with ControlLoop(session, ladder, decoder=decoder, deadline_s=0.8 * period_s) as loop:  # the rest of the period is the robot's
            for number in range(episodes):
                try:
                    total = episode(loop, robot, period_s)
                except RequestTimeout as error:  # the robot stands; nothing is lost
                    print(f"episode {number}: {error}")
                    continue
                print(f"episode {number}: return {total:g}; commands so far: {loop.counts}")


def episode(loop: ControlLoop, robot: gym.Env[Any, Any], period_s: float) -> float:
    """One episode of the robot; ends early when an outage has stopped it. Returns its return."""
    observation, _ = robot.reset()
    command, total = loop.start_episode(observation), 0.0
    while not command.episode_over and command.source != "stop":
        next_period = time.monotonic() + period_s
        observation, reward, terminated, truncated, _ = robot.step(command.action)
        total += float(reward)
        time.sleep(max(0.0, next_period - time.monotonic()))
        command = loop.step(float(reward), observation, terminated, truncated)
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m clients.examples.robot_loop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=10, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    robot = gym.make("clients.simulator:skillet/PointMaze-v0", goal=(12, 7))  # your robot here, as a Gymnasium environment
    run(options.url, robot, episodes=options.episodes)
    robot.close()


if __name__ == "__main__":
    main()
