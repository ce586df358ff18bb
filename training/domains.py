"""What a training run needs to know of its domain: environment, simulator, tasks, offline data. One entry for each domain."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from training.collect.kitchen import KitchenCollectConfig, collect_kitchen, sequences
from training.collect.maze import MazeCollectConfig, collect_maze
from training.config import TrainingConfig
from training.contract.context import Floats
from training.contract.errors import ConfigError
from training.contract.spec import ModelSpec, VectorSpec
from training.data import Episode
from training.plots import Picture, plot_chance_subtasks, plot_maze_skills, plot_skill_strip
from training.rollout import TaskSimulator
from training.simulators.kitchen import KitchenTasks
from training.simulators.maze import MazeSimulator
from training.simulators.maze_tasks import MazeTasks

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Domain(ABC):
    """A domain made ready by `open_domain`."""

    config: TrainingConfig
    env: gym.Env[Any, Any]

    @property
    @abstractmethod
    def simulator(self) -> TaskSimulator:
        """Episodes of the domain side by side, with the environment's dynamics."""

    @property
    def training_simulator(self) -> TaskSimulator:
        """Episodes for meta-training, where a domain has a faster simulator for them."""
        return self.simulator

    @abstractmethod
    def show_skills(self, paths: Sequence[Floats], file: Path) -> str:
        """Draw episodes [n, S] of skills sampled from the prior. Returns a line that says what they reach."""

    @abstractmethod
    def task_labels(self, tasks: Sequence[Any]) -> dict[str, Sequence[float] | Sequence[str]]:
        """What task embeddings are coloured by, one value for each task: numbers, or names."""

    @abstractmethod
    def collect(self, run_dir: Path) -> Sequence[Episode]:
        """Make the offline data; what it keeps on the way is in ``run_dir``."""

    @property
    def train_tasks(self) -> list[Any]:
        """The tasks of meta-training."""
        return list(self.env.get_wrapper_attr("tasks")(self.config.domain.train_tasks))

    @property
    def test_tasks(self) -> list[Any]:
        """The unseen tasks of evaluation."""
        return list(self.env.get_wrapper_attr("tasks")(self.config.domain.test_tasks))

    @property
    def action_limits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lowest and highest actions [A]."""
        space = self.env.action_space
        assert isinstance(space, gym.spaces.Box)
        return space.low.astype(np.float32), space.high.astype(np.float32)

    def demonstrator_options(self, model: type[Options]) -> Options:
        """The options of the scripted demonstrator, checked. Raises ConfigError naming what is wrong and what there is."""
        try:
            return model.model_validate({"seed": self.config.seed} | self.config.collect.demonstrator)
        except ValidationError as error:
            lines = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigError(f"collect.demonstrator: {lines}; the options are {', '.join(model.model_fields)}") from error

    def spec(self) -> ModelSpec:
        """The bundle's spec, from the environment's spaces and metadata."""
        config, metadata, limits = self.config, self.env.metadata, self.env.spec
        if limits is None or limits.max_episode_steps is None:
            raise ConfigError(f"{config.domain.env_id} has no max_episode_steps; register it with one")
        _check_buffers(config, limits.max_episode_steps)
        return ModelSpec(
            env_id=config.domain.env_id,
            observation=_vector_spec(self.env.observation_space, metadata["observation"]),
            action=_vector_spec(self.env.action_space, metadata["action"]),
            skill_dim=config.skills.skill_dim,
            skill_horizon=config.skills.horizon,
            task_embedding_dim=config.networks.task_embedding_dim,
            max_context=config.networks.max_context,
            episode_steps=limits.max_episode_steps,
            control_period_s=metadata["control_period_s"],
        )


class MazeDomain(Domain):
    """The point maze, trained in a compiled simulator."""

    @cached_property
    def simulator(self) -> MazeTasks:
        """Goal-reaching episodes in the compiled simulator."""
        return MazeTasks(MazeSimulator.from_env(self.config.domain.env_id))

    def show_skills(self, paths: Sequence[Floats], file: Path) -> str:
        """Their ways through the maze."""
        cells = np.mean([len({tuple(cell) for cell in np.rint(path[:, :2]).astype(int)}) for path in paths])
        plot_maze_skills(self.env.get_wrapper_attr("layout"), paths, file)
        return f"{cells:.1f} cells an episode by the skill prior"

    def task_labels(self, tasks: Sequence[Any]) -> dict[str, Sequence[float] | Sequence[str]]:
        """The goals' coordinates."""
        return {"goal's row": [goal[0] for goal in tasks], "goal's column": [goal[1] for goal in tasks]}

    def collect(self, run_dir: Path) -> Sequence[Episode]:
        """Shortest paths between random places. It takes seconds, and keeps nothing on the way."""
        made = collect_maze(self.demonstrator_options(MazeCollectConfig), self.simulator.simulator)
        return [Episode(episode.observations, episode.actions) for episode in made]


class KitchenDomain(Domain):
    """The kitchen, trained in MuJoCo itself on all cores."""

    @cached_property
    def simulator(self) -> KitchenTasks:
        """Episodes with the environment's own physics step."""
        return KitchenTasks(self.env.unwrapped)

    @cached_property
    def training_simulator(self) -> KitchenTasks:
        """Episodes with the configured physics step. Raises ConfigError when it does not divide the control period."""
        step_s = self.config.meta.physics_step_s
        try:
            return self.simulator if step_s is None else KitchenTasks(self.env.unwrapped, step_s)
        except ValueError as error:
            raise ConfigError(f"meta.physics_step_s: {error}") from error

    def show_skills(self, paths: Sequence[Floats], file: Path) -> str:
        """How many subtasks they finish by chance, and pictures of eight skills from the start state."""
        kitchen = self.env.get_wrapper_attr("kitchen")
        done = np.stack([kitchen.done(path).any(0) for path in paths])
        plot_chance_subtasks(kitchen.subtasks, done, file)
        line = f"{done.sum(1).mean():.2f} distinct subtasks an episode by the skill prior"
        try:
            self._show_first_skills(paths, file.with_stem(f"{file.stem}-strip"))
        except RuntimeError as error:  # no graphics library: the figures are there all the same
            line += f"; no pictures of them: {error}"
        return line

    def _show_first_skills(self, paths: Sequence[Floats], file: Path, shown: int = 8, pictures: int = 6) -> None:
        """Pictures of the first skill of some episodes, all from the start state."""
        steps = np.linspace(0, self.config.skills.horizon, pictures).round().astype(int)
        draw = self.env.get_wrapper_attr("draw")
        frames = [[_around_the_arm(draw(path[step])) for step in steps] for path in paths[:shown]]
        captions = [f"skill {number}" for number in range(1, len(frames) + 1)]
        plot_skill_strip(frames, captions, file, [f"step {step}" for step in steps])

    def task_labels(self, tasks: Sequence[Any]) -> dict[str, Sequence[float] | Sequence[str]]:
        """The first and the last subtask."""
        return {"first subtask": [task[0] for task in tasks], "last subtask": [task[-1] for task in tasks]}

    def collect(self, run_dir: Path) -> Sequence[Episode]:
        """Scripted demonstrations of the training tasks and of further sequences, none a test task."""
        options = self.demonstrator_options(KitchenCollectConfig)
        tasks = sequences(self.train_tasks, self.test_tasks)
        return [made.episode for made in collect_kitchen(options, self.config.domain.env_id, tasks, run_dir)]


DOMAINS: dict[str, type[Domain]] = {"maze": MazeDomain, "kitchen": KitchenDomain}
"""Name in a configuration -> domain."""


def open_domain(config: TrainingConfig) -> Domain:
    """The domain of a configuration. Raises ConfigError when there is none of its name."""
    name = config.domain.name
    if name not in DOMAINS:
        nearest = difflib.get_close_matches(name, DOMAINS, 1, 0.0)[0]
        raise ConfigError(f"expected a domain among {', '.join(DOMAINS)}; got {name!r}, the nearest is {nearest!r}")
    return DOMAINS[name](config, gym.make(config.domain.env_id))


def _check_buffers(config: TrainingConfig, episode_steps: int) -> None:
    """Raise ConfigError where a replay has no room for one episode."""
    needed = -(-episode_steps // config.skills.horizon)
    for name, size in (("meta.buffer_per_task", config.meta.buffer_per_task), ("finetuning.buffer", config.finetuning.buffer)):
        if size < needed:
            raise ConfigError(f"expected {name} to hold an episode of {config.domain.env_id}, {needed} skill transitions; got {size}")


def _around_the_arm(picture: Picture) -> Picture:
    """The part of a kitchen's picture in which the arm moves: in the whole of it one skill hardly shows."""
    height, width = picture.shape[:2]
    return picture[height // 3 : height * 9 // 10, width // 5 : width * 4 // 5]


def _vector_spec(space: gym.Space[Any], entries: Sequence[tuple[str, str]]) -> VectorSpec:
    if not isinstance(space, gym.spaces.Box) or space.shape != (len(entries),):
        raise ConfigError(f"expected a flat Box of {len(entries)} entries, as the metadata name, got {space}")
    names, units = zip(*entries, strict=True)
    return VectorSpec(names=names, units=units, low=tuple(space.low.tolist()), high=tuple(space.high.tolist()))
