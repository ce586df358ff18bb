"""A session as it is kept between two requests, and what a request changes. Plain data.

What is stored is stored as arrays, without the names of its fields: new fields go to the end.
"""

from dataclasses import dataclass, field

from msgspec import Struct

from service.keys import SessionKeys
from service.schemas import EndedEpisode, EpisodeStarted, Promotion
from service.session_log import Event
from training.contract.context import Floats, unpack_rows
from training.contract.exploration import Exploration, Phase


class OpenSkill(Struct, array_like=True):
    """A skill whose transitions have not all come in: where it began, and what came so far."""

    start: int
    state: bytes  # float32 [S]
    skill: bytes  # float32 [Z]
    policy_version: int
    reward: float = 0.0
    outcomes: int = 0


class LastAction(Struct, array_like=True):
    """The newest action, kept so that the same question gets the same answer."""

    step: int
    action: list[float]
    skill_step: int
    policy_version: int
    task_version: int
    phase: Phase
    limited: list[str] = []
    outside: list[str] = []
    skill: list[float] | None = None


class Outcome(Struct, array_like=True):
    """A transition whose observation has been checked. The newest one is kept to tell a repetition from a contradiction."""

    step: int
    reward: float | None  # None: to follow
    next_state: bytes  # float32 [S]
    terminated: bool
    truncated: bool


class StartedEpisode(Struct, frozen=True, array_like=True):
    """What starting an episode answered, kept so that the same request gets the same answer."""

    key: str
    answer: EpisodeStarted


class Followed(Struct, array_like=True):
    """What a session that explores by a belief has ruled out and follows (`training.contract.belief.Following`)."""

    plausibility: bytes  # float32 [P]
    particle: int
    since: int
    hope: float


class Explored(Struct, array_like=True):
    """Where a session that explores by novelty has been (`training.contract.novelty.Places`)."""

    seen: bytes = b""  # float32 [m, R]
    aimed: bytes = b""  # float32 [k, R]
    track: bytes = b""  # float32 [k, R]
    route: bytes = b""  # float32 [n, R]


class Session(Struct, array_like=True):
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
    share_skills: bool = False
    promotion: Promotion = "automatic"
    # the open or last episode
    episode: int = -1
    episode_open: bool = False
    phase: Phase = Phase.EXPLORING
    embedding: bytes = b""  # float32 [E], or [n, E] that take turns; what the episode acts with while by the bundle's own policy
    use_skill_prior: bool = False
    task_version: int = 0
    act_step: int = 0
    outcome_step: int = 0
    episode_return: float = 0.0
    first_row: int = 0
    versions_used: list[int] = []
    skills: list[OpenSkill] = []
    last_action: LastAction | None = None
    last_outcome: Outcome | None = None
    held: list[Outcome] = []  # by step, all after outcome_step: they wait for the steps before them
    pending: dict[int, int] = {}  # steps whose reward is to follow -> row of the context that it belongs to
    unsettled: bool = False  # the episode is over, but not all rewards have come
    ended: EndedEpisode | None = None  # what the end of the last episode left out; rewards only once it counts without them
    started: list[StartedEpisode] = []  # the newest starts that had an idempotency key
    # what is in Redis beside it
    rows: int = 0
    revision: int = 0  # how often a late reward changed a row
    rewarded: bool = False  # in a step: rewards of a skill that add up to nothing tell of its task too
    episodes_completed: int = 0
    followed: Followed | None = None  # by a session that explores by a belief
    recent_returns: list[float] = []  # of the newest completed episodes, which tell what the session knows how to earn
    newest_version: int = 0  # that acted by what the session knows; going back to an older one makes recent_returns mean nothing
    # of the open episode
    may_go_beyond: bool = False  # it may explore beyond what the session knows, once there is nothing left to gain by that
    beyond_from: int = -1  # from which step on it does; -1: it does not
    beyond_return: float = 0.0  # what the steps from there on earned
    skipped: bool = False  # a skill was left out, so that rows are not its skills one by one
    explored: Explored | None = None  # by a session that explores by novelty
    recent_completed: list[bool] = []  # of the newest completed episodes: whether they ended their task, and were rewarded
    detour_after: float | None = None  # what the open episode has earned when it takes a detour; None: it takes none
    detour_from: int = -1  # from which step on it took one; -1: it has not


class EpisodeRecord(Struct, frozen=True):
    """A completed episode: which rows of the context are its own."""

    episode: int
    first_row: int
    end_row: int
    steps: int
    episode_return: float
    phase: Phase
    versions_used: list[int]
    beyond_from: int = -1  # from which step on it explored beyond what the session knew, with the bundle's policy; -1: it did not
    beyond_return: float = 0.0  # what the steps from there on earned
    skipped: bool = False  # a skill was left out, so that rows are not its skills one by one

    @property
    def known_return(self) -> float:
        """What the episode earned by what the session knew."""
        return self.episode_return - self.beyond_return


@dataclass
class Changes:
    """What is saved together with a session."""

    rows: list[Floats] = field(default_factory=list)
    episode: EpisodeRecord | None = None
    late_rewards: list[tuple[int, float]] = field(default_factory=list)  # byte in the stored context, what to add to the reward there
    transitions: int = 0
    events: list[Event] = field(default_factory=list)


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
    """A task posterior: float32 [E] each, from ``version`` rows at ``revision``."""

    version: int
    mean: Floats
    scale: Floats
    revision: int = 0


@dataclass(frozen=True)
class WayBack:
    """Along which route, float32 [n, R], an episode goes back to a reward (n = 0: none is known), and whether from its beginning."""

    route: Floats
    at_once: bool


def task_prior(embedding_dim: int) -> Posterior:
    """N(0, I): what is known of a task without any context."""
    zeros = unpack_rows(bytes(4 * embedding_dim), embedding_dim)[0]
    return Posterior(0, zeros, zeros + 1)
