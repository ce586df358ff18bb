"""What a training run needs to know of its domain: environment, simulator, tasks, offline data. One entry for each domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from training.collect.maze import MazeCollectConfig, collect_maze
from training.config import TrainingConfig
from training.contract.errors import ConfigError
from training.contract.spec import ModelSpec, VectorSpec
from training.data import Episode
from training.rollout import TaskSimulator
from training.simulators.maze import MazeSimulator
from training.simulators.maze_tasks import MazeTasks


@dataclass(frozen=True)
class Domain:
    """A domain made ready by `open_domain`."""

    config: TrainingConfig
    env: gym.Env[Any, Any]
    simulator: TaskSimulator

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

    def collect(self) -> Sequence[Episode]:
        """Make the offline data."""
        collect = self.config.collect
        assert isinstance(self.simulator, MazeTasks)
        try:
            options = MazeCollectConfig.model_validate({"seed": self.config.seed} | collect.demonstrator)
        except ValidationError as error:
            lines = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigError(f"collect.demonstrator: {lines}; the options are {', '.join(MazeCollectConfig.model_fields)}") from error
        made = collect_maze(options, self.simulator.simulator)
        return [Episode(episode.observations, episode.actions) for episode in made]

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


def open_domain(config: TrainingConfig) -> Domain:
    """The domain of a configuration. Raises ConfigError when there is none of its name."""
    if config.domain.name != "maze":
        raise ConfigError(f"expected the domain 'maze', got {config.domain.name!r}")
    env_id = config.domain.env_id
    return Domain(config, gym.make(env_id), MazeTasks(MazeSimulator.from_env(env_id)))


def _vector_spec(space: gym.Space[Any], entries: Sequence[tuple[str, str]]) -> VectorSpec:
    if not isinstance(space, gym.spaces.Box) or space.shape != (len(entries),):
        raise ConfigError(f"expected a flat Box of {len(entries)} entries, as the metadata name, got {space}")
    names, units = zip(*entries, strict=True)
    return VectorSpec(names=names, units=units, low=tuple(space.low.tolist()), high=tuple(space.high.tolist()))
