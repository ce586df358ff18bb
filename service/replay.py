"""Replaying a session's log against a bundle: the same states, and what would be done in them now. No I/O."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service import acting, skill_choice
from service.errors import InvalidRequest
from service.policies import MetaPolicy, Networks
from service.session_log import Acted, Began, Event, Reported
from service.session_state import Explored, Followed, OpenSkill, Outcome, Posterior, Session
from training.contract.context import Floats, pack_rows, unpack_rows

Policies = Callable[[int], MetaPolicy | None]


@dataclass(frozen=True)
class Difference:
    """An action that would be another one now."""

    episode: int
    step: int
    largest: float


@dataclass
class Replayed:
    """What a replay found. ``unknown``: skills of versions whose weights are gone, taken from the log as they are."""

    actions: int = 0
    identical: int = 0
    unknown: int = 0
    differences: list[Difference] = field(default_factory=list)


def replay(session: Session, events: Sequence[Event], networks: Networks, policies: Policies, context: Floats) -> Replayed:
    """Act again in every logged state, with ``session``'s options and the logged beliefs about the task.

    ``policies`` gives a policy version, None when its weights are gone; ``context`` [N, D] are the session's skill transitions, from which
    the beliefs are inferred anew when they have this bundle's width. Raises InvalidRequest when states are not of this bundle's length.
    """
    found = Replayed()
    for event in events:
        if isinstance(event, Began):
            _begin(session, event, networks, context)
        elif isinstance(event, Acted):
            _act(session, event, networks, policies, found)
        elif isinstance(event, Reported):
            session.last_outcome = Outcome(event.step, event.reward, event.next_state, event.terminated, event.truncated)
    return found


def _begin(session: Session, event: Began, networks: Networks, context: Floats) -> None:
    dim = networks.spec.task_embedding_dim
    if not event.embedding or len(event.embedding) % (4 * dim):
        raise InvalidRequest(
            "the log does not fit the bundle", expected=f"{dim} numbers in an embedding", received=len(event.embedding) // 4
        )
    known = unpack_rows(event.embedding, dim)  # [n, E]
    inferred = event.task_version and event.phase != "exploring" and context.shape[1] == networks.layout.width
    belief = networks.infer_task(context[: event.rows])[0][None] if inferred else known
    session.episode = event.episode - 1
    acting.begin_episode(session, event.phase, Posterior(event.task_version, belief[0], np.ones_like(belief[0])))
    session.phase, session.use_skill_prior, session.task_version = event.phase, event.use_skill_prior, event.task_version
    session.embedding = pack_rows(belief)
    session.may_go_beyond, session.detour_after = False, None  # the log says of each skill whether it did
    if event.route:
        session.explored = Explored(route=event.route)
    if networks.digest == session.digest:  # another bundle has seen with other eyes
        if event.plausibility:
            session.followed = Followed(event.plausibility, particle=-1, since=0, hope=1.0)  # it chooses anew with the first skill
        if event.seen:
            session.explored = Explored(seen=event.seen)


def _act(session: Session, event: Acted, networks: Networks, policies: Policies, found: Replayed) -> None:
    width = networks.spec.state_dim
    if len(event.state) != 4 * width:
        raise InvalidRequest("the log does not fit the bundle", expected=f"{width} numbers in a state", received=len(event.state) // 4)
    state, wanted = unpack_rows(event.state, width)[0], np.frombuffer(event.action, "<f4")
    policy = None
    if event.skill is not None:
        session.phase, session.rewarded = event.phase, event.rewarded
        session.beyond_from = event.step if event.beyond else -1
        session.detour_from = event.step if event.detour else -1
        session.outcome_step = 0 if event.rewards_due else event.step
        policy = policies(event.policy_version)
        if policy is None:
            found.unknown += 1
            skill_choice.note_way(session, event.step, state, networks)
            session.skills.append(OpenSkill(event.step, event.state, event.skill, event.policy_version))
    session.act_step = event.step
    reply = acting.act(session, event.step, state, networks=networks, policy=policy or networks.meta_policy, max_ahead=1 << 31)
    got = np.array(reply.action, np.float32)
    found.actions += 1
    if got.shape == wanted.shape and np.array_equal(got, wanted):
        found.identical += 1
    else:
        largest = float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")
        found.differences.append(Difference(session.episode, event.step, largest))
    session.last_action.action = wanted.tolist()  # type: ignore[union-attr]  # the next action follows the one that was executed
