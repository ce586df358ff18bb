"""``python -m benchmarks.exploration``: how much of the maze sessions see that explore without ever being rewarded.

Each cell is asked for the first episode in which a session of a bundle came within the goal radius of it at the end of a skill, so that the
outcome depends on no choice of goals: it is the success in conditioning if goals were cells at random and, once found, were always reached
again. One row for each exploration, and the plain skill prior beside them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from clients.simulator.layout import Maze
from training.config import TrainingConfig, load_config
from training.contract.bundle import Bundle
from training.contract.context import ContextLayout, Floats
from training.contract.exploration import Exploration
from training.domains import Domain, open_domain
from training.evaluate import TargetProtocol
from training.methods.start import Start, start_from_bundle
from training.rollout import Acting, rollout

NOWHERE = (-100, -100)
"""A goal that is never reached."""

PRIOR = "skill prior"
FAR_CELLS = 4
"""Cells on the way from every training goal, from which on a cell counts as far."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore, print the table."""
    options = _parser().parse_args(arguments)
    config = load_config("maze")
    domain, bundle = open_domain(config), Bundle.load(options.bundle)
    start, maze = start_from_bundle(bundle, config), domain.env.get_wrapper_attr("maze")
    cells = np.array(maze.free_cells, np.float32)
    far = np.array(distances(maze, domain.train_tasks)) >= FAR_CELLS
    names = options.explorations or [*map(str, bundle.manifest.explorations), PRIOR]
    found = {}
    for name in names:
        rounds = by_prior(domain, start, options.sessions) if name == PRIOR else exploring(config, domain, start, name, options.sessions)
        visited = [
            [seen(rows, cells, maze.goal_radius) for rows in next(rounds)]
            for _ in track(range(options.episodes), name, transient=True)
        ]  # fmt: skip
        found[name] = np.maximum.accumulate(np.array(visited), 0)  # [episodes, sessions, cells]
    print(f"{len(cells)} cells, {far.sum()} of them far from training goals; {options.sessions} sessions of {options.episodes} episodes\n")
    print(table(found, far))
    return 0


def exploring(config: TrainingConfig, domain: Domain, start: Start, name: str, count: int) -> Iterator[list[Floats]]:
    """The states [n, S] that ``count`` sessions came to, episode after episode."""
    evaluate = config.evaluate.model_copy(update={"exploration": Exploration(name), "conditioning_episodes": sys.maxsize})
    config = config.model_copy(update={"evaluate": evaluate})
    assert start.networks is not None
    protocol = TargetProtocol(config, start.networks, domain.spec(), domain.simulator, None, start.belief)
    sessions = protocol.begin([NOWHERE], range(count))
    for episode in range(sys.maxsize):
        protocol.advance(sessions, episode)
        yield [session.context[-1][:, protocol.layout.next_state] for session in sessions]


def by_prior(domain: Domain, start: Start, count: int) -> Iterator[list[Floats]]:
    """The same of episodes by the skill prior."""
    spec, rng = domain.spec(), np.random.default_rng(0)
    layout = ContextLayout(spec.state_dim, spec.skill_dim)
    assert start.networks is not None
    while True:
        episodes, _ = rollout(
            domain.simulator, [NOWHERE] * count, start.networks.policy, start.networks.skills.decoder,
            Acting.by_prior(count, spec.task_embedding_dim), horizon=spec.skill_horizon, layout=layout, rng=rng,
        )  # fmt: skip
        yield [episode.rows[:, layout.next_state] for episode in episodes]


def seen(states: Floats, cells: Floats, radius: float) -> NDArray[np.bool_]:
    """Which cells [C, 2] lie within the radius of any of the states [n, S], whose first two entries are the place."""
    offsets = states[:, None, :2] - cells[None]
    near: NDArray[np.bool_] = (np.square(offsets).sum(-1) <= radius**2).any(0)
    return near


def distances(maze: Maze, goals: Sequence[tuple[int, int]]) -> list[int]:
    """Cells on the way from each free cell to the nearest goal."""
    free, found, front = set(maze.free_cells), {tuple(goal): 0 for goal in goals}, [tuple(goal) for goal in goals]
    while front:
        row, column = front.pop(0)
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if cell in free and cell not in found:
                found[cell] = found[row, column] + 1
                front.append(cell)
    return [found[cell] for cell in maze.free_cells]


def table(found: dict[str, NDArray[np.bool_]], far: NDArray[np.bool_]) -> str:
    """Of what each exploration had seen by each episode, [episodes, sessions, cells]: means over episodes, then by episode."""
    count = len(next(iter(found.values())))
    shown = [episode for episode in (1, 2, 4, 6, 10) if episode <= count]
    lines = [f"| exploration | all cells | far cells | {' | '.join(f'within {episode}' for episode in shown)} |"]
    lines.append("|---|---|---|" + "---|" * len(shown))
    for name, share in found.items():
        by_episode = " | ".join(f"{share[episode - 1].mean():.2f}" for episode in shown)
        lines.append(f"| {name} | {share.mean():.3f} | {share[..., far].mean():.3f} | {by_episode} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exploration", description=__doc__.partition("\n")[2])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/maze"), help="a bundle's folder (default: %(default)s)")
    parser.add_argument("--explorations", nargs="+", metavar="NAME", help=f"default: all that the bundle offers, and {PRIOR!r}")
    parser.add_argument("--sessions", type=int, default=16, help="of each exploration (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=10, help="of each session (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
