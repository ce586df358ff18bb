"""Bodies that clients send."""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from service.roles import Role
from training.contract.exploration import Exploration, Phase

Number = Annotated[int, Meta(ge=0, le=2**31)]
Seed = Annotated[int, Meta(ge=0, le=2**53, description="all of the session's randomness derives from it", examples=[7])]
Promotion = Literal["automatic", "manual"]
LearningState = Literal["idle", "queued", "running", "paused", "failed"]
Vector = Annotated[list[float], Meta(description="numbers in the order of the bundle's specs", examples=[[0.1, -0.2, 0.0, 0.3]])]
LARGEST_REWARD: Final = 1e9
"""What networks of float32 make of larger ones is not finite any more."""

Reward = Annotated[float, Meta(ge=-LARGEST_REWARD, le=LARGEST_REWARD, examples=[0.0])]


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """A request body."""


class OpenSession(Request, frozen=True):
    """How a new session shall behave."""

    bundle: str | None = None
    seed: Seed = 0
    conditioning_episodes: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | None,
        Meta(description="exploring episodes before the task is inferred (K); null: as the bundle says"),
    ] = None
    exploration: Annotated[
        Exploration | None, Meta(description="how conditioning episodes choose task embeddings or plan skills; null: as the bundle says")
    ] = None
    finetuning: bool = True
    deterministic: Annotated[bool, Meta(description="act with the mean skill instead of a drawn one")] = False
    promotion: Annotated[Promotion, Meta(description="do versions that pass the checks serve at once, or wait for approval")] = "automatic"
    share_skills: Annotated[bool, Meta(description="tell each skill with its first action, so that a robot can finish it alone")] = False
    ttl_s: Annotated[
        int,
        Meta(
            ge=1,
            le=365 * 86400,
            description="the session expires so many seconds after it last acted or reported: its time begins anew once a tenth of it has "
            "passed, and reading does not count",
        ),
    ] = 86400


class ChangeSession(Request, frozen=True):
    """Force a phase from the next episode on, or null for automatic."""

    phase: Phase | None


class Act(Request, frozen=True):
    """Ask for the action of one step."""

    episode: Annotated[Number, Meta(examples=[0])]
    step: Annotated[Number, Meta(examples=[0])]
    observation: Vector


class Transition(Request, frozen=True):
    """The outcome of one acted step."""

    episode: Annotated[Number, Meta(examples=[0])]
    step: Annotated[Number, Meta(examples=[0])]
    reward: Annotated[Reward | None, Meta(description="null: it follows later")]
    next_observation: Vector
    terminated: bool
    truncated: bool


class PostTransitions(Request, frozen=True):
    """Outcomes of acted steps, in any order."""

    transitions: Annotated[list[Transition], Meta(min_length=1, max_length=1000)]


class ActOf(Act, frozen=True):
    """Ask for the action of one step of one session."""

    session_id: str


class TransitionOf(Transition, frozen=True):
    """The outcome of one acted step of one session."""

    session_id: str


class ActMany(Request, frozen=True):
    """Ask for actions of many sessions."""

    items: Annotated[list[ActOf], Meta(min_length=1, max_length=256)]


class StepMany(Request, frozen=True):
    """Outcomes of steps of many sessions."""

    items: Annotated[list[TransitionOf], Meta(min_length=1, max_length=256)]


class LateReward(Request, frozen=True):
    """The reward of a step whose transition was sent with ``reward: null``."""

    episode: Annotated[Number, Meta(examples=[0])]
    step: Annotated[Number, Meta(examples=[0])]
    reward: Reward


class PostRewards(Request, frozen=True):
    """Rewards that follow their transitions, in any order."""

    rewards: Annotated[list[LateReward], Meta(min_length=1, max_length=1000)]


class Rollback(Request, frozen=True):
    """The version to go back to; without one, the version before the current one."""

    version: Number | None = None


class Approval(Request, frozen=True):
    """The candidate version to act with; without one, the newest."""

    version: Number | None = None


class ChangeFinetuning(Request, frozen=True):
    """Pause or resume."""

    paused: bool


class CreateToken(Request, frozen=True):
    """Whom a new token is for."""

    role: Role
    name: Annotated[str, Meta(description="of the robot or person; tokens of one name own the same sessions", examples=["arm-3"])]
    lifetime_s: Annotated[float, Meta(gt=0, le=100 * 365 * 86400)] | None = None
