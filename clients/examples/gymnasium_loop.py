"""Twenty lines to start from: put your own environment in place of the maze. ``python -m clients.examples.gymnasium_loop [URL]``."""

import argparse

import gymnasium as gym

from clients.sdk import SkilletClient


def main(url: str = "http://127.0.0.1:8000", *, episodes: int = 30) -> None:
    """Run episodes in a session of its own, first exploring, then adapted."""
    env = gym.make("clients.simulator:skillet/PointMaze-v0", goal=(12, 7))  # your own environment here
    with SkilletClient(url) as client, client.open_session() as session:
        for _ in range(episodes):
            episode, total = session.start_episode(), 0.0
            observation, _ = env.reset()
            action = session.act(observation)
            while not action.episode_over:
                observation, reward, terminated, truncated, _ = env.step(action.action)
                total += float(reward)
                action = session.step(float(reward), observation, terminated, truncated)
            print(f"episode {episode.episode} ({episode.phase}): return {total:g}, policy version {action.policy_version}")
            session.finetuning(wait_s=60)  # a simulator is faster than a robot: let the learner catch up
    env.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m clients.examples.gymnasium_loop", description="Thirty episodes of the maze in one session.")
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="of a running service (default: %(default)s)")
    main(parser.parse_args().url)
