"""Reward-free trajectories through the kitchen: scripted demonstrations of sequences of four subtasks."""

import hashlib
import itertools
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from training.collect.kitchen_arm import Arm
from training.collect.kitchen_recipes import RECIPES, Scene
from training.data import Episode
from training.run_log import RunLog

Task = tuple[str, ...]
ACTION_DIM = 9
MAX_TRIES = 3
"""How often a subtask is tried before the next one's turn."""


class KitchenCollectConfig(BaseModel):
    """How the kitchen's demonstrations are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    episodes: int = Field(640, gt=0)
    seed: int = Field(0, ge=0)
    max_steps: int = Field(280, gt=0)
    action_noise: tuple[float, ...] = Field((0.05, 0.1, 0.15), min_length=1, description="standard deviations; each episode takes one")
    noise_correlation: tuple[float, ...] = Field(
        (0.0,), min_length=1, description="of the noise of one step with that of the step before; each episode takes one"
    )
    record: Literal["intended", "executed"] = Field("intended", description="actions that are kept: without the noise, or with it")
    waypoint_jitter: float = Field(0.008, ge=0, description="standard deviation of waypoints along each axis, m")
    slowest: float = Field(0.7, gt=0, le=1, description="an episode's speed factor lies between this and 1")
    patience: int = Field(2, ge=0, description="longest extra wait when the fingers open or close, steps")
    workers: int = Field(0, ge=0, description="processes; 0 takes one for each core")


@dataclass(frozen=True)
class Demonstration:
    """One episode and what it was to do, and did."""

    episode: Episode
    task: Task
    finished: tuple[bool, ...]  # the task's subtasks, in its order, each with all before it
    noise: float  # standard deviation of the action noise
    correlation: float  # of the noise from step to step

    @property
    def turns(self) -> tuple[str, ...]:
        """The subtasks that had their turn: those finished, and the first that was not."""
        return self.task[: sum(self.finished) + 1]


def sequences(train: Sequence[Task], test: Sequence[Task]) -> list[Task]:
    """The training tasks and further sequences, so that each subtask follows each other one somewhere; none is a test task."""
    chosen = list(train)
    candidates = [task for task in itertools.permutations(RECIPES, 4) if task not in set(test)]
    while missing := set(itertools.permutations(RECIPES, 2)) - {pair for task in chosen for pair in itertools.pairwise(task)}:
        chosen.append(max(candidates, key=lambda task: len(missing.intersection(itertools.pairwise(task)))))
    return chosen


class Demonstrator:
    """Makes demonstrations in one environment."""

    def __init__(self, config: KitchenCollectConfig, env_id: str) -> None:
        self.config, self.env, self.arm = config, gym.make(env_id), Arm()
        self.data = self.env.get_wrapper_attr("data")

    def demonstrate(self, task: Task, seed: Sequence[int]) -> Demonstration:
        """One episode of a task; the same seed always gives the same one."""
        config, rng = self.config, np.random.default_rng(seed)
        state, _ = self.env.reset(seed=int(rng.integers(2**31)))
        scene = Scene(self.data, state, rng, config.waypoint_jitter, rng.uniform(config.slowest, 1.0), config.patience)
        noise, correlation = float(rng.choice(config.action_noise)), float(rng.choice(config.noise_correlation))
        disturbance = np.zeros(ACTION_DIM)
        observations, actions = [state], []
        for target in itertools.islice(self._targets(scene, task), config.max_steps):
            clean = self.arm.act(target, scene.state[:7].astype(np.float64), self.data.qfrc_bias[:7])
            disturbance = correlation * disturbance + noise * math.sqrt(1 - correlation**2) * rng.standard_normal(ACTION_DIM)
            executed = np.clip(clean + disturbance, -1, 1)
            scene.state, *_ = self.env.step(executed.astype(np.float32))
            observations.append(scene.state)
            # What the demonstrator does about a disturbance is worth learning, the disturbance is not (DART: Laskey et al. 2017).
            actions.append((np.clip(clean, -1, 1) if config.record == "intended" else executed).astype(np.float32))
        path = np.stack(observations)
        rewards = self.env.get_wrapper_attr("judge")(path, [task])[0]
        score = int(rewards.sum())
        return Demonstration(Episode(path, np.stack(actions)), task, tuple(rank < score for rank in range(len(task))), noise, correlation)

    def done(self, state: Any) -> set[str]:
        """The subtasks that are done in a state."""
        kitchen = self.env.get_wrapper_attr("kitchen")
        return set(itertools.compress(kitchen.subtasks, kitchen.done(state)))

    def _targets(self, scene: Scene, task: Task) -> Iterator[Any]:
        for name in task:
            for _ in range(MAX_TRIES):
                yield from RECIPES[name](scene)
                if name in self.done(scene.state):
                    break


def collect_kitchen(config: KitchenCollectConfig, env_id: str, tasks: Sequence[Task], run_dir: Path) -> list[Demonstration]:
    """Make ``config.episodes`` demonstrations, the tasks in turn, in processes of their own.

    Each episode is kept under ``run_dir`` as soon as it is made, and is not made again by a later call with the same options and tasks. It
    does not depend on the number of processes. A table of what succeeded is left in ``run_dir/collect.md``.
    """
    folder = run_dir / "collect" / _digest(config, tasks)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:05}.npz" for index in range(config.episodes)]
    missing = [index for index, file in enumerate(files) if not file.exists()]
    there = len(files) - len(missing)
    with RunLog(run_dir, "collect", len(files), "episodes", resumed_at=there) as log:
        began, scores = time.monotonic(), []
        for score in _make_all(config, env_id, [(tasks[index % len(tasks)], index, files[index]) for index in missing]):
            scores.append(score)
            per_minute = 60 * len(scores) / (time.monotonic() - began)
            log.report(there + len(scores), {"score": float(np.mean(scores)), "episodes_per_minute": per_minute})
    made = [_read(file) for file in files]
    (run_dir / "collect.md").write_text(success_table(made), encoding="utf-8")
    return made


def success_table(made: Sequence[Demonstration]) -> str:
    """Markdown: how often each subtask was finished when it had its turn, and how far each sequence came."""
    lines = ["| subtask | turns | finished |", "|---|---|---|"]
    for name in RECIPES:
        turns = [done for demo in made for turn, done in zip(demo.turns, demo.finished, strict=False) if turn == name]
        lines.append(f"| {name} | {len(turns)} | {sum(turns)} |")
    lines += ["", "| action noise | correlation | episodes | mean score |", "|---|---|---|---|"]
    for noise, correlation in sorted({(demo.noise, demo.correlation) for demo in made}):
        scores = [sum(demo.finished) for demo in made if (demo.noise, demo.correlation) == (noise, correlation)]
        lines.append(f"| {noise:g} | {correlation:g} | {len(scores)} | {np.mean(scores):.2f} |")
    lines += ["", "| sequence | episodes | mean score | all four |", "|---|---|---|---|"]
    for task in dict.fromkeys(demo.task for demo in made):
        scores = [sum(demo.finished) for demo in made if demo.task == task]
        lines.append(f"| {', '.join(task)} | {len(scores)} | {np.mean(scores):.2f} | {scores.count(len(task))} |")
    scores = [sum(demo.finished) for demo in made]
    steps = [len(demo.episode) for demo in made]
    lines.append(f"| all | {len(made)} | {np.mean(scores):.3f} | {scores.count(4)} |")
    return "\n".join([*lines, "", f"Steps an episode: median {np.median(steps):.0f}, 90 % within {np.percentile(steps, 90):.0f}.", ""])


def _make_all(config: KitchenCollectConfig, env_id: str, wanted: Sequence[tuple[Task, int, Path]]) -> Iterator[int]:
    """Make the wanted episodes on all cores; yields the score of each as it is there."""
    if not wanted:
        return
    workers = min(config.workers or os.cpu_count() or 1, len(wanted))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (config, env_id))
    try:
        for future in as_completed([pool.submit(_make, task, (config.seed, index), file) for task, index, file in wanted]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # when stopped early, what is in work is finished and the rest is left


_worker: Demonstrator


def _start_worker(config: KitchenCollectConfig, env_id: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the pool
    global _worker  # noqa: PLW0603 - a process of the pool keeps its environment
    _worker = Demonstrator(config, env_id)


def _make(task: Task, seed: Sequence[int], file: Path) -> int:
    made = _worker.demonstrate(task, seed)
    scratch = file.with_suffix(".part")
    with scratch.open("wb") as stream:
        np.savez(
            stream,
            observations=made.episode.observations,
            actions=made.episode.actions,
            task=made.task,
            finished=made.finished,
            noise=made.noise,
            correlation=made.correlation,
        )
    scratch.rename(file)
    return sum(made.finished)


def _read(file: Path) -> Demonstration:
    with np.load(file) as stored:
        episode = Episode(stored["observations"], stored["actions"])
        return Demonstration(
            episode,
            tuple(stored["task"].tolist()),
            tuple(stored["finished"].tolist()),
            float(stored["noise"]),
            float(stored["correlation"]),
        )


def _digest(config: KitchenCollectConfig, tasks: Sequence[Task]) -> str:
    options = config.model_dump_json(exclude={"episodes", "workers"})
    return hashlib.sha256(f"{options} {list(tasks)}".encode()).hexdigest()[:12]
