"""What a comparison is made in: a domain's simulators and tasks, its configuration, and what all methods start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.config import TrainingConfig
from training.contract.spec import ModelSpec
from training.data import Episode
from training.domains import Domain
from training.methods.method import Method
from training.methods.primitive_actions import primitive_config, primitive_skills
from training.methods.start import Start
from training.networks.skill_model import SkillModel
from training.rollout import TaskSimulator


@dataclass(frozen=True)
class Setting:
    """``spec`` is that of acting with skills; ``offline`` gives the offline data to a method that asks for demonstrations."""

    config: TrainingConfig
    start: Start
    spec: ModelSpec
    simulator: TaskSimulator
    training_simulator: TaskSimulator
    train_tasks: Sequence[Any]
    test_tasks: Sequence[Any]
    offline: Callable[[], Sequence[Episode]] = tuple
    device: str = "cpu"
    """Where meta-trainings compute their updates."""

    @classmethod
    def of(
        cls, domain: Domain, start: Start, tasks: Sequence[Any], offline: Callable[[], Sequence[Episode]], device: str = "cpu"
    ) -> "Setting":
        """A domain's own, on the unseen ``tasks``."""
        simulators = domain.simulator, domain.training_simulator
        return cls(domain.config, start, domain.spec(), *simulators, domain.train_tasks, tasks, offline, device)

    def configure(self, method: Method, meta_seed: int) -> TrainingConfig:
        """The configuration of a method with a meta-training seed."""
        config = method.configure(self.config)
        if method.primitive_actions:
            config = primitive_config(config, self.spec.action.dim)
        return config.model_copy(update={"seed": meta_seed})

    def spec_of(self, method: Method) -> ModelSpec:
        """What the method acts with."""
        if not method.primitive_actions:
            return self.spec
        return self.spec.model_copy(update={"skill_dim": self.spec.action.dim, "skill_horizon": 1})

    def skills_of(self, method: Method, config: TrainingConfig) -> SkillModel:
        """The skills that the method acts with."""
        if not method.primitive_actions:
            return self.start.skills
        low, high = (torch.tensor(limit) for limit in (self.spec.action.low, self.spec.action.high))
        return primitive_skills(config, self.start.skills.features, low, high)
