"""What the service answers, as frozen dataclasses with the wire's field names. Fields that this SDK does not know are ignored.

`parse` turns a decoded JSON object into one of them.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from clients.sdk.errors import UnexpectedReply

Floats = NDArray[np.float32]
_Model = TypeVar("_Model")  # one of the dataclasses below


@dataclass(frozen=True, slots=True)
class Action:
    """What to do at ``step`` of ``episode``.

    ``action`` is float32 [A] within the safety envelope, None when the episode is over. ``skill_step`` counts from 0 to H-1 within a
    skill. ``replayed``: the same request had come before, this is the same answer again. ``limited``: which limits of the envelope changed
    it; ``outside``: names of the observation's entries outside its usual range. ``skill`` [Z] comes with a skill's first action, in a
    session that shares its skills.
    """

    episode: int
    step: int
    action: Floats | None
    skill_step: int | None
    policy_version: int
    task_version: int
    phase: str
    episode_over: bool
    replayed: bool = False
    limited: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    skill: Floats | None = None


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """One vector: name, unit, lower and upper limit of each entry."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def dim(self) -> int:
        """Number of entries."""
        return len(self.names)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a bundle expects and returns. Lengths in environment steps, ``control_period_s`` between two actions."""

    env_id: str
    observation: VectorSpec
    action: VectorSpec
    skill_dim: int
    skill_horizon: int
    task_embedding_dim: int
    max_context: int
    episode_steps: int
    control_period_s: float


@dataclass(frozen=True, slots=True)
class Envelope:
    """The bundle's safety envelope, margins included; None in a limit: there is none."""

    action_low: tuple[float | None, ...]
    action_high: tuple[float | None, ...]
    action_change: tuple[float | None, ...]
    observation_low: tuple[float | None, ...]
    observation_high: tuple[float | None, ...]
    refused_low: tuple[float | None, ...]
    refused_high: tuple[float | None, ...]
    source: str


@dataclass(frozen=True, slots=True)
class BundleName:
    """A bundle's name and the SHA-256 over its files."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class BundleSummary:
    """A bundle that is served, and the Gymnasium id of the environment that it was trained in."""

    name: str
    digest: str
    env_id: str


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session. ``episode`` is the open or last one (None before the first), ``step`` the next to act.

    ``specs`` and ``envelope`` are not in listings.
    """

    session_id: str
    bundle: BundleName
    seed: int
    phase: str
    forced_phase: str | None
    conditioning_episodes: int
    exploration: str
    finetuning: bool
    deterministic: bool
    episode: int | None
    step: int
    episode_open: bool
    episodes_completed: int
    gaps: tuple[int, ...]
    pending_rewards: tuple[int, ...]
    context_size: int
    task_version: int
    policy_version: int
    created_at: str
    expires_at: str
    closed: bool
    share_skills: bool = False
    promotion: str = "automatic"
    specs: ModelSpec | None = None
    envelope: Envelope | None = None


@dataclass(frozen=True, slots=True)
class EndedEpisode:
    """An episode that was ended, as truncated if it was open; by starting the next one, for good.

    ``steps``: transitions kept. ``gaps``: steps whose transition never came, ``discarded``: those of no use without them,
    ``missing_rewards``: those that count with a reward of 0, unless it is posted before the next episode starts.
    """

    episode: int
    steps: int
    gaps: tuple[int, ...] = ()
    discarded: tuple[int, ...] = ()
    missing_rewards: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EpisodeStarted:
    """A started episode and the phase that it acts in. ``replayed``: an earlier request with the same key had started it."""

    episode: int
    phase: str
    ended_previous: EndedEpisode | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """The outcome of one environment step; ``next_observation`` is [S]; ``reward`` None: it follows by ``post_rewards``."""

    reward: float | None
    next_observation: Any
    terminated: bool
    truncated: bool


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one item: ``status`` stored, held (until the steps before it come), duplicate or refused (``code`` and ``detail``)."""

    episode: int
    step: int
    status: str
    code: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class TransitionsPosted:
    """What became of a batch, item by item; ``gaps`` are the acted steps that have no outcome yet."""

    accepted: int
    duplicates: int
    refused: int
    results: tuple[ItemResult, ...]
    gaps: tuple[int, ...]
    context_size: int
    task_version: int
    episode_over: bool


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What one session of a batch got: an action, or the problem that kept it from one."""

    status: int
    action: Any = None
    problem: Any = None


@dataclass(frozen=True, slots=True)
class BatchAnswers:
    """What a batch of sessions got, in the order in which they were asked for."""

    results: tuple[BatchAnswer, ...]


@dataclass(frozen=True, slots=True)
class RewardsPosted:
    """What became of late rewards, item by item; ``pending`` are the steps whose reward is still to follow."""

    accepted: int
    duplicates: int
    refused: int
    results: tuple[ItemResult, ...]
    pending: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Particle:
    """One task embedding, float32 [E], of a belief over tasks, and its share of the whole weight."""

    task_embedding: Floats
    weight: float


@dataclass(frozen=True, slots=True)
class Belief:
    """A belief over tasks: how many particles it has and how many still count, its entropy in nats, the likeliest ``best`` of them."""

    particles: int
    effective_particles: float
    entropy: float
    best: tuple[Particle, ...]


@dataclass(frozen=True, slots=True)
class TaskPosterior:
    """What is known of the task: ``mean`` and ``scale`` float32 [E], from ``context_size`` skill transitions.

    ``belief`` is None in sessions that do not explore by one.
    """

    version: int
    mean: Floats
    scale: Floats
    context_size: int
    phase: str
    belief: Belief | None = None


@dataclass(frozen=True, slots=True)
class FinetuningStatus:
    """Where the learner stands. ``state``: idle, queued, running, paused or failed; ``error`` says why it failed."""

    enabled: bool
    paused: bool
    state: str
    episodes_completed: int
    episodes_learned: int
    updates: int
    losses: Mapping[str, float | None]
    policy_version: int
    error: str | None


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One policy version: when it came, its ``status`` (published, candidate, rejected, rolled_back) and why. 0 is the bundle's own."""

    version: int
    created_at: str
    status: str
    reason: str
    episode: int | None
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class PolicyEvent:
    """What became of a version: ``event`` published, candidate, approved, rejected, rolled_back_to or resumed."""

    at: str
    event: str
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class PolicyVersions:
    """A session's policy versions, and the one that the next skill is chosen with."""

    current: int
    versions: tuple[PolicyVersion, ...]
    history: tuple[PolicyEvent, ...] = ()


def parse(cls: type[_Model], data: Any) -> _Model:
    """Read one of this module's dataclasses from a decoded JSON object. Raises UnexpectedReply for a missing or mistyped field."""
    if not isinstance(data, Mapping):
        raise UnexpectedReply(f"the reply is no JSON object with a {cls.__name__}", expected="an object", received=type(data).__name__)
    values: dict[str, Any] = {}
    for name, kind, required in _schema(cast(Any, cls)):
        if name in data:
            try:
                values[name] = _convert(kind, data[name])
            except (TypeError, ValueError) as error:
                raise UnexpectedReply(f"{cls.__name__}.{name} cannot be read: {error}") from error
        elif required:
            action = "the service may be of another version than this SDK: update one of them"
            raise UnexpectedReply(f"the reply has no {name!r}", expected=cls.__name__, received=sorted(data), action=action)
    return cls(**values)


@cache
def _schema(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = get_type_hints(cls)
    return tuple((f.name, _unwrap_optional(hints[f.name]), f.default is MISSING) for f in fields(cls))


def _unwrap_optional(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not type(None))
    return hint


def _convert(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if kind == Floats:
        return np.array(value, dtype=np.float32)
    if get_origin(kind) is tuple:
        return tuple(_convert(get_args(kind)[0], item) for item in value)
    if isinstance(kind, type) and is_dataclass(kind):
        return parse(kind, value)
    return value
