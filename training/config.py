"""Configuration of every training stage: frozen models, presets in TOML, ``--set key=value`` on top."""

import difflib
import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_origin

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, model_validator

from training.contract.errors import ConfigError
from training.contract.exploration import Exploration
from training.contract.spec import Frozen


class DomainConfig(Frozen):
    """Which environment is trained in, and which tasks."""

    name: str = Field(description="short name, e.g. 'maze'; also the bundle's")
    env_id: str = Field(description="Gymnasium id, with the module that registers it before a colon")
    train_tasks: str = Field(description="split of the environment's tasks for meta-training")
    test_tasks: str = Field(description="split of unseen tasks for evaluation")


class CollectConfig(Frozen):
    """The project's own offline data."""

    dataset: str = Field(description="Minari dataset id that `collect` writes and `skills` reads")
    demonstrator: dict[str, Any] = Field(default_factory=dict, description="options of the domain's scripted demonstrator")


class DataConfig(Frozen):
    """Offline data from elsewhere. The other keys say how the dataset's observations become the environment's."""

    minari: str | None = Field(default=None, description="Minari dataset id to train on in place of the project's own data")
    observation_key: str | None = Field(default=None, description="key of a dict observation; None for flat observations")
    observation_entries: tuple[NonNegativeInt, ...] | None = Field(
        default=None, min_length=1, description="entries of the dataset's observations, in the environment's order; None for all of them"
    )


class FeatureConfig(Frozen):
    """How a state is presented to the networks: scaled, with sines and cosines of chosen entries (a lattice world is periodic)."""

    periodic_entries: tuple[int, ...] = ()
    periods: tuple[float, ...] = ()
    smallest_std: float = Field(default=1e-3, gt=0, description="standard deviation that an entry of the state is taken to have at least")


class SkillConfig(Frozen):
    """Skill extraction (SPiRL, closed loop)."""

    horizon: int = Field(default=10, gt=0)
    skill_dim: int = Field(default=10, gt=0)
    encoder_hidden: tuple[int, ...] = (256, 256)
    decoder_hidden: tuple[int, ...] = (128, 128, 128)
    prior_hidden: tuple[int, ...] = (128, 128, 128, 128)
    beta: float = Field(default=1e-4, gt=0, description="weight of KL(q || N(0, I)) beside the mean squared error of actions")
    steps: int = Field(default=12_000, gt=0)
    batch: int = Field(default=384, gt=0)
    decoded_steps: int = Field(default=3, gt=0, description="steps of each window that are decoded in an update")
    return_temperature: float | None = Field(
        default=None,
        gt=0,
        description="sample windows by exp(G / this), G what their episode would have earned at best in a training task; None: evenly",
    )
    learning_rate: float = Field(default=1e-3, gt=0)
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the networks' products in training; weights and losses are float32 either way"
    )

    @model_validator(mode="after")
    def _decodes_within_the_window(self) -> Self:
        if self.decoded_steps > self.horizon:
            raise ValueError(f"decoded_steps ({self.decoded_steps}) must not exceed horizon ({self.horizon})")
        return self


class NetworkConfig(Frozen):
    """Sizes of the task encoder, meta-policy and critics."""

    task_embedding_dim: int = Field(default=5, gt=0)
    policy_hidden: tuple[int, ...] = (128, 128, 128)
    critic_hidden: tuple[int, ...] = (128, 128, 128)
    critics: int = Field(default=2, gt=0)
    critic_layer_norm: bool = True
    encoder: Literal["set_transformer", "product_of_gaussians"] = "set_transformer"
    encoder_width: int = Field(default=64, gt=0)
    encoder_heads: int = Field(default=4, gt=0)
    encoder_inducing_points: int = Field(default=16, gt=0)
    encoder_blocks: int = Field(default=2, ge=0)
    max_context: int = Field(default=256, gt=0)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.encoder_width % self.encoder_heads:
            raise ValueError(f"encoder_width ({self.encoder_width}) must be a multiple of encoder_heads ({self.encoder_heads})")
        return self


class MetaConfig(Frozen):
    """Skill-based meta-training (SiMPL, section 4.2, on PEARL)."""

    updates: int = Field(default=10_000, gt=0)
    updates_per_epoch: int = Field(default=40, gt=0)
    physics_step_s: float | None = Field(
        default=None, gt=0, description="physics step of its episodes where MuJoCo simulates them; None: the environment's own"
    )
    blind_updates: int = Field(
        default=0, ge=0, description="first updates, in which no task has an embedding: what is of use in all tasks is learned first"
    )
    prior_tasks: int = Field(default=3, gt=0, description="tasks per update whose embedding comes from a small context")
    posterior_tasks: int = Field(default=12, gt=0, description="tasks per update whose embedding comes from a large context")
    batch_per_task: int = Field(default=80, gt=0)
    prior_context: int = Field(default=4, ge=0, description="transitions of a small context; 0: embeddings from N(0, I)")
    posterior_context: int = Field(default=128, gt=0)
    buffer_per_task: int = Field(default=20_000, gt=0)
    success_share: float = Field(default=1 / 3, ge=0, le=1, description="share of each batch from the task's best episodes")
    return_bound: bool = Field(default=True, description="bound the TD target from below by the episode's discounted return")
    return_bound_updates: int | None = Field(default=None, ge=0, description="updates after which that bound is dropped; None: never")
    demonstrations: int = Field(
        default=0, ge=0, description="offline episodes of each task, those that earn most in it, of which half of the contexts hold a share"
    )
    replayed_demonstrations: bool = Field(
        default=False, description="whether a task's replay begins with the demonstrations that earn most in it"
    )
    imitation: float = Field(
        default=0.0, ge=0, description="weight of imitating, in each task under its posterior, the skills of those demonstrations, at first"
    )
    imitation_updates: int = Field(default=9600, gt=0, description="updates in which that weight falls to nothing, linearly")
    relabelled_episodes: int = Field(
        default=4, ge=0, description="episodes of other tasks, an epoch and task, added with the rewards that they would have earned in it"
    )
    context_pool: int = Field(
        default=0,
        ge=0,
        description="newest episodes of all tasks that contexts are made of, rewarded as each task would; 0: its own replay",
    )
    discount: float = Field(default=0.99, gt=0, lt=1)
    polyak: float = Field(default=0.01, gt=0, le=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    coefficient_learning_rate: float = Field(default=3e-4, gt=0)
    kl_clip: float = Field(default=5.0, gt=0)
    coefficient_may_fall: bool = Field(
        default=False, description="whether KL coefficients of the policy fall again while the KL is below its target"
    )
    encoder_prior_coefficient: float = Field(default=1e-5, gt=0)
    encoder_prior_target: float = Field(default=1.0, gt=0)
    encoder_posterior_coefficient: float = Field(default=3e-6, gt=0)
    encoder_posterior_target: float = Field(default=10.0, gt=0)
    policy_prior_coefficient: float = Field(default=9e-4, gt=0)
    policy_prior_target: float = Field(default=1.0, gt=0)
    policy_posterior_coefficient: float = Field(default=3e-4, gt=0)
    policy_posterior_target: float = Field(default=2.0, gt=0)
    checkpoint_epochs: int = Field(default=10, gt=0)


class BeliefConfig(Frozen):
    """What sessions explore with (`training.belief`): particles of task embeddings, a reward decoder, and a model of where skills lead."""

    particles: int = Field(default=0, ge=0, description="embeddings that a session weighs; 0: the bundle offers no belief")
    episodes: int = Field(default=800, gt=0, description="episodes of the training tasks to learn from")
    hidden: tuple[int, ...] = (64, 64)
    updates: int = Field(default=2000, gt=0)
    batch: int = Field(default=1024, gt=0)
    learning_rate: float = Field(default=2e-3, gt=0)
    rewarded_share: float = Field(
        default=0.04, gt=0, lt=1, description="rewarded states in a batch: many more than there are, so that the decoder rules out early"
    )
    neighbours: int = Field(default=6, ge=0, description="nearest other tasks towards which a task's particles spread")
    interpolation: float = Field(default=0.6, ge=0, le=1, description="how far on the way to a neighbour, and away from it, particles go")
    widening: float = Field(default=1.5, gt=0, description="what the posteriors' scales are multiplied by")
    prior_share: float = Field(default=0.1, ge=0, le=1, description="share of particles from N(0, I), for tasks unlike the training tasks")
    dynamics_updates: int = Field(
        default=0, ge=0, description="updates of a model of where skills lead, with which sessions explore by novelty; 0: they cannot"
    )
    dynamics_hidden: tuple[int, ...] = (128, 128, 128)


class FinetuningConfig(Frozen):
    """Learning the target task (SiMPL, section 4.3): offline and in the service's learner."""

    batch: int = Field(default=256, gt=0)
    warm_start_updates: int = Field(default=200, gt=0, description="updates on the conditioning episodes before the first fine-tuned one")
    updates_per_episode: int = Field(default=40, ge=0)
    buffer: int = Field(default=20_000, gt=0)
    success_share: float = Field(default=1 / 3, ge=0, le=1)
    imitation: float = Field(default=0.0, ge=0, description="weight of imitating the skills of the best episodes")
    return_bound: bool = True
    infer_again: bool = Field(
        default=False,
        description="the task shows bit by bit, in rewards that are never negative: infer it anew when an episode earns more than any "
        "before it did, and let sessions that explore by thompson or alternating explore while there is nothing left to gain by what "
        "they know",
    )
    detours: bool = Field(
        default=False,
        description="with infer_again: while no episode completes its task, let some of them leave the way for a few skills of the skill "
        "prior, where fine-tuning stays short of a task whose missing step comes before what the session does now; what was found so, even "
        "once, counts as the best episodes alone",
    )
    discount: float = Field(default=0.99, gt=0, lt=1)
    polyak: float = Field(default=0.01, gt=0, le=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    coefficient_learning_rate: float = Field(default=3e-4, gt=0)
    kl_clip: float = Field(default=5.0, gt=0)
    coefficient_may_fall: bool = Field(
        default=False, description="whether KL coefficients of the policy fall again while the KL is below its target"
    )
    kl_target: float = Field(default=2.0, gt=0)
    kl_limit: float = Field(default=25.0, gt=0, description="a version whose mean KL to the skill prior is above this is not served, nats")

    @model_validator(mode="after")
    def _detours_where_the_task_shows_bit_by_bit(self) -> Self:
        if self.detours and not self.infer_again:
            raise ValueError("detours need infer_again: without it no session explores beyond what it knows")
        return self


class EvaluateConfig(Frozen):
    """Offline evaluation of the whole target-task protocol."""

    conditioning_episodes: int = Field(default=20, ge=0)
    exploration: Exploration = Exploration.SWITCHING
    skill_temperature: float = Field(
        default=1.0, gt=0, le=10, description="what the meta-policy's standard deviations are multiplied by when it chooses a skill"
    )
    episodes: int = Field(default=60, gt=0)
    finetuning: bool = Field(default=True, description="whether sessions are fine-tuned after conditioning, or go on with the posterior")
    seeds: int = Field(default=3, gt=0)
    deterministic_every: int = Field(
        default=0, ge=0, description="episodes between evaluations of the mean skill, in an episode that nothing learns from; 0: none"
    )


class TrainingConfig(Frozen):
    """The whole pipeline of one domain."""

    seed: int = Field(default=0, ge=0)
    domain: DomainConfig
    collect: CollectConfig
    data: DataConfig = DataConfig()
    features: FeatureConfig = FeatureConfig()
    skills: SkillConfig = SkillConfig()
    networks: NetworkConfig = NetworkConfig()
    meta: MetaConfig = MetaConfig()
    belief: BeliefConfig = BeliefConfig()
    finetuning: FinetuningConfig = FinetuningConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _explores_by_what_there_is(self) -> Self:
        exploration, belief = self.evaluate.exploration, self.belief
        if exploration in (Exploration.BELIEF, Exploration.NOVELTY) and not belief.particles:
            raise ValueError(f"evaluate.exploration {exploration.value!r} needs particles: set belief.particles, e.g. to 256")
        if exploration is Exploration.NOVELTY and not belief.dynamics_updates:
            raise ValueError("evaluate.exploration 'novelty' needs a model of where skills lead: set belief.dynamics_updates, e.g. to 4000")
        return self

    @property
    def offline_data(self) -> DataConfig:
        """The dataset that skills are extracted from: ``data``, or the project's own where that names none."""
        return self.data if self.data.minari else DataConfig(minari=self.collect.dataset)


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """A preset by name (``maze``) or a TOML file by path, with ``section.key=value`` overrides on top.

    Raises ConfigError naming what was wrong and the nearest right name.
    """
    content = _read(name_or_path)
    for override in overrides:
        _apply(content, override)
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}{_hint(item)}" for item in error.errors())
        raise ConfigError(f"configuration {name_or_path!r}: {lines}") from error


def presets() -> list[str]:
    """Names of the presets."""
    return sorted(file.name.removesuffix(".toml") for file in resources.files("training.configs").iterdir() if file.name.endswith(".toml"))


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in presets():
        file = resources.files("training.configs") / f"{name_or_path}.toml"
    elif Path(name_or_path).is_file():
        file = Path(name_or_path)
    else:
        raise ConfigError(f"no configuration {name_or_path!r}: give a TOML file or one of {', '.join(presets())}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name_or_path} is no TOML: {error}") from error


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set takes key=value, e.g. meta.updates=5000; got {override!r}")
    model: Any = TrainingConfig
    *sections, last = key.strip().split(".")
    for part in [*sections, last]:
        if get_origin(model) is dict:  # options of a demonstrator: any key
            break
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        if part not in fields:
            nearest = difflib.get_close_matches(part, fields, 1, 0)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            raise ConfigError(f"--set {key}: no key {part!r}{hint}")
        model = fields[part].annotation
    for part in sections:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {key}: expected {part!r} to be a table in the file, found {content!r}")
    try:
        content[last] = json.loads(text)
    except ValueError:
        content[last] = text


def _hint(item: Any) -> str:
    if item["type"] != "extra_forbidden":
        return ""
    model: Any = TrainingConfig
    for part in item["loc"][:-1]:
        model = model.model_fields[part].annotation
    nearest = difflib.get_close_matches(str(item["loc"][-1]), model.model_fields, 1, 0)
    return f" (the nearest key is {nearest[0]!r})" if nearest else ""
