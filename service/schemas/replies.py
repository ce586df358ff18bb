"""What the service answers."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from service.roles import Role
from service.schemas.requests import LearningState, Promotion
from training.contract.exploration import Exploration, Phase


class BundleName(Struct, frozen=True):
    """Which bundle, and its digest over all files."""

    name: str
    digest: str


class SessionView(Struct, frozen=True, omit_defaults=False):
    """Where a session stands."""

    session_id: str
    bundle: BundleName
    seed: int
    phase: Phase
    forced_phase: Phase | None
    conditioning_episodes: int
    exploration: Exploration
    finetuning: bool
    deterministic: bool
    episode: int | None
    step: int
    episode_open: bool
    episodes_completed: int
    gaps: list[int]
    pending_rewards: list[int]
    context_size: int
    task_version: int
    policy_version: int
    created_at: str
    expires_at: str
    closed: bool
    share_skills: bool
    promotion: Promotion
    specs: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    envelope: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class SessionList(Struct, frozen=True):
    """One page of sessions, newest first."""

    sessions: list[SessionView]
    next_cursor: str | None


class EndedEpisode(Struct, frozen=True):
    """An episode that was ended, as truncated if it was open; that of the start of the next one, for good.

    ``steps``: transitions kept. ``gaps``: acted steps whose transition never came. ``discarded``: steps that were held and cannot be used
    without one of those. ``missing_rewards``: steps that count with a reward of 0, unless it comes before the next episode starts.
    """

    episode: int
    steps: int
    gaps: list[int]
    discarded: list[int]
    missing_rewards: list[int]


class EpisodeStarted(Struct, frozen=True):
    """The episode that has begun."""

    episode: int
    phase: Phase
    ended_previous: EndedEpisode | None
    replayed: bool = False


class EpisodeEnded(Struct, frozen=True):
    """What the newest episode was ended without; null when it had ended by itself, with nothing missing."""

    ended: EndedEpisode | None


class Action(Struct, frozen=True):
    """The action for one step; null when the episode is over.

    ``limited``: which limits of the safety envelope changed it (``action_limited``, ``change_limited``). ``outside``: names of the
    observation's entries that are outside the envelope's usual range. ``skill``: with its first action, in a session that shares them.
    """

    episode: int
    step: int
    action: list[float] | None
    skill_step: int | None
    policy_version: int
    task_version: int
    phase: Phase
    episode_over: bool
    replayed: bool
    limited: list[str] = []
    outside: list[str] = []
    skill: list[float] | None = None


ItemStatus = Literal["stored", "held", "duplicate", "refused"]


class ItemResult(Struct, frozen=True):
    """What became of one item: stored, held until the steps before it come, a duplicate without effect, or refused for a reason."""

    episode: int
    step: int
    status: ItemStatus
    code: str | None
    detail: str | None


class TransitionsPosted(Struct, frozen=True):
    """What became of a batch, item by item. ``accepted``: stored and held ones. ``gaps``: acted steps that have no transition yet."""

    accepted: int
    duplicates: int
    refused: int
    results: list[ItemResult]
    gaps: list[int]
    context_size: int
    task_version: int
    episode_over: bool


class RewardsPosted(Struct, frozen=True):
    """What became of late rewards, item by item. ``pending``: steps whose reward is still to follow."""

    accepted: int
    duplicates: int
    refused: int
    results: list[ItemResult]
    pending: list[int]


class Particle(Struct, frozen=True):
    """One task embedding of a belief, and its share of the whole weight."""

    task_embedding: list[float]
    weight: float


class Belief(Struct, frozen=True):
    """A session's belief over tasks: how many particles there are and how many still count, entropy in nats, and the likeliest of them."""

    particles: int
    effective_particles: float
    entropy: float
    best: list[Particle]


class TaskPosterior(Struct, frozen=True):
    """Newest task posterior. ``version`` is the number of skill transitions that it was inferred from.

    ``belief`` is null in sessions that explore neither by one nor by novelty.
    """

    version: int
    mean: list[float]
    scale: list[float]
    context_size: int
    phase: Phase
    belief: Belief | None = None


VersionStatus = Literal["published", "candidate", "rejected", "rolled_back"]


class PolicyEvent(Struct, frozen=True):
    """What became of a version: published, a candidate that waits for approval, approved, rejected, gone back to, learned on from; why."""

    at: str
    event: Literal["published", "candidate", "approved", "rejected", "rolled_back_to", "resumed"]
    version: int
    reason: str


class PolicyVersion(Struct, frozen=True):
    """One version of a session's policy; version 0 is the bundle's own."""

    version: int
    created_at: str
    status: VersionStatus
    reason: str
    episode: int | None
    metrics: dict[str, float | None]


class PolicyVersions(Struct, frozen=True):
    """The version that the next skill choice uses, and all others."""

    current: int
    versions: list[PolicyVersion]
    history: list[PolicyEvent]


class FinetuningStatus(Struct, frozen=True):
    """Where fine-tuning stands."""

    enabled: bool
    paused: bool
    state: LearningState
    episodes_completed: int
    episodes_learned: int
    updates: int
    losses: dict[str, float | None]
    policy_version: int
    error: str | None


class TokenView(Struct, frozen=True):
    """A token, without its secret. ``token``: the token itself, told once, when it is made."""

    token_id: str
    name: str
    role: Role
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    token: str | msgspec.UnsetType = msgspec.UNSET


class TokenList(Struct, frozen=True):
    """Every token that was made, the oldest first."""

    tokens: list[TokenView]


class BundleSummary(Struct, frozen=True):
    """One bundle that is served."""

    name: str
    digest: str
    env_id: str


class BundleList(Struct, frozen=True):
    """The bundles that are served; the first is the default."""

    bundles: list[BundleSummary]


class Problem(Struct, frozen=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    expected: Any
    received: Any
    action: str | None
    request_id: str
    retry_after_s: int | msgspec.UnsetType = msgspec.UNSET


class ManyResult(Struct, frozen=True):
    """What one item of a batch got: the action, or the problem that the same call alone would have got."""

    session_id: str
    status: int
    action: Action | None
    problem: Problem | None


class ManyResults(Struct, frozen=True):
    """One result for each item, in their order."""

    results: list[ManyResult]
