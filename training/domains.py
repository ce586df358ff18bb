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
from training.contract.errors import ConfigError
from training.contract.spec import ModelSpec, VectorSpec
from training.data import Episode
from training.rollout import TaskSimulator
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
        """Episodes of the domain side by side, for skills and meta-training."""

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

    def collect(self, run_dir: Path) -> Sequence[Episode]:
        """Shortest paths between random places. It takes seconds, and keeps nothing on the way."""
        made = collect_maze(self.demonstrator_options(MazeCollectConfig), self.simulator.simulator)
        return [Episode(episode.observations, episode.actions) for episode in made]


class KitchenDomain(Domain):
    """The kitchen."""

    @property
    def simulator(self) -> TaskSimulator:
        """There is none as yet."""
        raise ConfigError("the kitchen has no vectorised simulator yet: only the stage 'collect' can be run with it")

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


def _vector_spec(space: gym.Space[Any], entries: Sequence[tuple[str, str]]) -> VectorSpec:
    if not isinstance(space, gym.spaces.Box) or space.shape != (len(entries),):
        raise ConfigError(f"expected a flat Box of {len(entries)} entries, as the metadata name, got {space}")
    names, units = zip(*entries, strict=True)
    return VectorSpec(names=names, units=units, low=tuple(space.low.tolist()), high=tuple(space.high.tolist()))
