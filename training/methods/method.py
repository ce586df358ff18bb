"""What makes a method, as a difference from Skillet's: what it starts from, what it leaves out, and which numbers it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import ValidationError

from training.config import TrainingConfig
from training.contract.errors import ConfigError
from training.contract.exploration import Exploration
from training.finetuning import Finetuner
from training.meta_training import MetaTrainer

_WITH_BELIEF: Final = "skillet"
"""The meta-training from which a belief over tasks is learned."""

Changes = Mapping[str, Mapping[str, Any]]
"""Section of a configuration -> key -> value."""


@dataclass(frozen=True)
class Method:
    """A method of reaching a target task, as the difference from Skillet's. The defaults are Skillet's own.

    ``domain_changes`` hold for the domain of that name only, on top of ``changes``.
    """

    name: str
    label: str
    about: str
    """What it is, in a phrase."""
    meta: str | None = None
    """Its meta-training, by the name under which methods share one; None: networks as they were initialised."""
    trainer: type[MetaTrainer] = MetaTrainer
    primitive_actions: bool = False
    """Acts with primitive actions: a skill of one step, under a standard normal prior."""
    infers_task: bool = True
    """Conditions, then acts under the task posterior; else it learns from its first episode, with no task embedding."""
    explores_as_skillet: bool = False
    """Explores until its first reward with what Skillet's meta-training left for that, though it has no meta-training of its own."""
    explores_until_rewarded: bool = True
    keeps_conditioning: bool = True
    """Whether fine-tuning learns from the conditioning episodes too."""
    goes_beyond: bool = True
    """Whether its sessions go beyond what they know: back along the way to a reward, or exploring with nothing left to gain."""
    finetunes: bool = True
    learner: type[Finetuner] = Finetuner
    changes: Changes = field(default_factory=dict)
    domain_changes: Mapping[str, Changes] = field(default_factory=dict)

    @property
    def shares(self) -> str:
        """By which name it goes together with the methods that may not be run beside it, as they write in one folder."""
        return _WITH_BELIEF if self.explores_as_skillet else self.meta or self.name

    def believes(self, config: TrainingConfig) -> bool:
        """Whether its sessions may explore by a belief over tasks: the configuration has one, and it is the method's own."""
        return self.meta == _WITH_BELIEF and config.belief.particles > 0

    def configure(self, config: TrainingConfig) -> TrainingConfig:
        """The configuration that the method runs with, from Skillet's. Raises ConfigError where that has not what the method takes."""
        content = config.model_dump()
        if self.meta != _WITH_BELIEF and not self.explores_as_skillet and config.evaluate.exploration.takes_turns:
            content["evaluate"]["exploration"] = Exploration.SWITCHING
        for changes in (self.changes, self.domain_changes.get(config.domain.name, {})):
            for section, values in changes.items():
                content[section] |= values
        if not self.infers_task:  # it learns from its first episode, or from its first reward
            content["evaluate"]["conditioning_episodes"] = 1 if self.explores_as_skillet else 0
        try:
            return TrainingConfig.model_validate(content)
        except ValidationError as error:
            raise ConfigError(
                f"the method {self.name} cannot run with this configuration: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
            ) from error

    def is_same(self, other: "Method", config: TrainingConfig) -> bool:
        """Whether, with Skillet's ``config``, it does the same as another method."""
        told = {"name": self.name, "label": self.label, "about": self.about, "changes": self.changes}
        return replace(other, **told) == self and self.configure(config) == other.configure(config)
