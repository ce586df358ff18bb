"""A session as it is kept between two requests, and what a request changes. Plain data."""

from dataclasses import dataclass, field

from msgspec import Struct

from service.keys import SessionKeys
from training.contract.context import Floats, unpack_rows
from training.contract.exploration import Exploration, Phase


class OpenSkill(Struct):
    """A skill whose transitions have not all come in: where it began, and what came so far."""

    start: int
    state: bytes  # float32 [S]
    skill: bytes  # float32 [Z]
    policy_version: int
    reward: float = 0.0
    outcomes: int = 0


class LastAction(Struct):
    """The newest action, kept so that the same question gets the same answer."""

    step: int
    action: list[float]
    skill_step: int
    policy_version: int
    task_version: int
    phase: Phase


class LastOutcome(Struct):
    """The newest transition, kept to tell a repetition from a contradiction."""

    step: int
    reward: float
    next_state: bytes  # float32 [S]
    terminated: bool
    truncated: bool


class Session(Struct):
    """Everything that acting needs, between two requests."""

    session_id: str
    bundle: str
    digest: str
    seed: int
    conditioning_episodes: int
    exploration: Exploration
    finetuning: bool
    deterministic: bool
    ttl_s: int
    created_at: float
    expires_at: float
    forced_phase: Phase | None = None
    # the open or last episode
    episode: int = -1
    episode_open: bool = False
    phase: Phase = Phase.EXPLORING
    embedding: bytes = b""  # float32 [E]; what the episode acts with while it acts with the bundle's own policy
    use_skill_prior: bool = False
    task_version: int = 0
    act_step: int = 0
    outcome_step: int = 0
    episode_return: float = 0.0
    first_row: int = 0
    versions_used: list[int] = []
    skills: list[OpenSkill] = []
    last_action: LastAction | None = None
    last_outcome: LastOutcome | None = None
    # what is in Redis beside it
    rows: int = 0
    rewarded: bool = False
    episodes_completed: int = 0


class EpisodeRecord(Struct, frozen=True):
    """A completed episode: which rows of the context are its own."""

    episode: int
    first_row: int
    end_row: int
    steps: int
    episode_return: float
    phase: Phase
    versions_used: list[int]


@dataclass
class Changes:
    """What is saved together with a session."""

    rows: list[Floats] = field(default_factory=list)
    episode: EpisodeRecord | None = None
    transitions: int = 0


@dataclass
class Loaded:
    """A session as read: its keys, its bytes (to save only over the same), and the policy version that the next skill choice uses.

    ``recalled``: from this process's memory; whatever is concluded from it holds only if `SessionStore.save` takes it.
    """

    session: Session
    keys: SessionKeys
    raw: bytes
    current_version: int
    recalled: bool = False


@dataclass(frozen=True)
class Posterior:
    """A task posterior: float32 [E] each; ``version`` is the number of rows it was inferred from."""

    version: int
    mean: Floats
    scale: Floats


def task_prior(embedding_dim: int) -> Posterior:
    """N(0, I): what is known of a task without any context."""
    zeros = unpack_rows(bytes(4 * embedding_dim), embedding_dim)[0]
    return Posterior(0, zeros, zeros + 1)
