"""What a transition changes in a session. No I/O: a session goes in and comes out changed.

Each skill lasts H steps; its transitions are folded into one skill transition when the last of them has come in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service import schemas
from service.errors import DuplicateTransition, NoOpenEpisode, StepNotActed, TransitionOutOfOrder, WrongEpisode
from service.observations import check_observation
from service.policies import Networks
from service.session_state import Changes, EpisodeRecord, LastOutcome, Session
from training.contract.context import Floats, pack_rows, unpack_rows
from training.contract.spec import VectorSpec


@dataclass(frozen=True)
class Outcome:
    """A transition whose observation has been checked: float32 [S]."""

    episode: int
    step: int
    reward: float
    next_state: Floats
    terminated: bool
    truncated: bool


@dataclass(frozen=True)
class Recorded:
    """How many outcomes were new and how many were there already."""

    accepted: int
    duplicates: int


def check_outcome(transition: schemas.Transition, spec: VectorSpec, path: str) -> Outcome:
    """The transition with its observation checked. Raises InvalidObservation."""
    state = check_observation(transition.next_observation, spec, f"{path}.next_observation")
    return Outcome(transition.episode, transition.step, transition.reward, state, transition.terminated, transition.truncated)


def end_episode(session: Session, changes: Changes, networks: Networks) -> schemas.EndedEpisode:
    """End the open episode as truncated."""
    if session.skills and session.skills[0].outcomes and session.last_outcome is not None:
        last = session.last_outcome
        next_state = unpack_rows(last.next_state, networks.spec.state_dim)[0]
        _complete_skill(session, changes, networks, next_state, terminated=False)
    _complete_episode(session, changes)
    return schemas.EndedEpisode(session.episode, session.outcome_step)


def record(session: Session, outcomes: Sequence[Outcome], changes: Changes, networks: Networks) -> Recorded:
    """Add transitions to the open episode; those that are there already are counted and left.

    Raises NoOpenEpisode, WrongEpisode, StepNotActed or TransitionOutOfOrder; the session is then to be thrown away, not saved.
    """
    accepted = 0
    for outcome in outcomes:
        check_episode(session, outcome.episode)
        if outcome.step < session.outcome_step:
            continue
        _check_turn(session, outcome)
        _add_outcome(session, outcome, changes, networks)
        accepted += 1
    return Recorded(accepted, len(outcomes) - accepted)


def check_new(session: Session, outcomes: Sequence[Outcome], recorded: Recorded) -> None:
    """Raise DuplicateTransition when nothing was new."""
    if recorded.accepted == 0:
        raise DuplicateTransition(
            f"all {len(outcomes)} transitions are stored already",
            expected=f"transitions from step {session.outcome_step} of episode {session.episode} on",
            received=f"steps {outcomes[0].step} to {outcomes[-1].step}",
            action="Nothing is lost; go on with the next step.",
        )


def check_repetition(session: Session, outcome: Outcome) -> None:
    """Raise DuplicateTransition unless ``outcome`` is the newest stored transition once more, in every number."""
    last = session.last_outcome
    if last is None or outcome.step != last.step:
        raise DuplicateTransition(
            f"the transition of step {outcome.step} is stored already, and later ones too",
            expected=f"step {session.outcome_step}",
            received=f"step {outcome.step}",
            action="Go on with the next step.",
        )
    again = LastOutcome(outcome.step, outcome.reward, pack_rows(outcome.next_state), outcome.terminated, outcome.truncated)
    if again != last:
        raise DuplicateTransition(
            f"another outcome of step {outcome.step} is stored already",
            expected="the same transition again, or the next one",
            received="the same step with other numbers",
            action="Send each step's outcome once; a repetition must not differ.",
        )


def gaps(session: Session) -> list[int]:
    """Steps that were acted and have no transition yet."""
    return list(range(session.outcome_step, session.act_step)) if session.episode_open else []


def check_episode(session: Session, episode: int) -> None:
    """Raise NoOpenEpisode before the first episode, WrongEpisode for any but the open or last one."""
    if session.episode < 0:
        raise no_open_episode(session)
    if episode != session.episode:
        raise WrongEpisode(
            f"the session is in episode {session.episode}",
            expected=session.episode,
            received=episode,
            action="Use the number that starting the episode returned.",
        )


def _check_turn(session: Session, outcome: Outcome) -> None:
    if not session.episode_open:
        raise no_open_episode(session)
    if outcome.step >= session.act_step:
        raise StepNotActed(
            f"step {outcome.step} of episode {outcome.episode} was never acted",
            expected=f"a step below {session.act_step}",
            received=outcome.step,
            action="Ask for the step's action before posting its outcome.",
        )
    if outcome.step > session.outcome_step:
        raise TransitionOutOfOrder(
            f"step {session.outcome_step} of episode {outcome.episode} has no transition yet",
            expected=session.outcome_step,
            received=outcome.step,
            action="Post transitions in order, none left out.",
        )


def _add_outcome(session: Session, outcome: Outcome, changes: Changes, networks: Networks) -> None:
    changes.transitions += 1
    skill, ends = session.skills[0], outcome.terminated or outcome.truncated
    skill.reward += outcome.reward
    skill.outcomes += 1
    session.episode_return += outcome.reward
    session.outcome_step += 1
    session.last_outcome = LastOutcome(outcome.step, outcome.reward, pack_rows(outcome.next_state), outcome.terminated, outcome.truncated)
    if ends or skill.outcomes == networks.spec.skill_horizon:
        _complete_skill(session, changes, networks, outcome.next_state, terminated=outcome.terminated)
    if ends:
        _complete_episode(session, changes)


def _complete_skill(session: Session, changes: Changes, networks: Networks, next_state: Floats, *, terminated: bool) -> None:
    skill, spec = session.skills.pop(0), networks.spec
    state, chosen = unpack_rows(skill.state, spec.state_dim)[0], unpack_rows(skill.skill, spec.skill_dim)[0]
    row = networks.layout.row(state, chosen, skill.reward, terminated, next_state)
    changes.rows.append(row)
    session.rows += 1
    session.rewarded = session.rewarded or bool(row[networks.layout.reward] != 0)


def _complete_episode(session: Session, changes: Changes) -> None:
    """An episode without a transition leaves nothing to learn from and does not count as completed."""
    session.episode_open = False
    session.skills = []
    if session.outcome_step == 0:
        return
    session.episodes_completed += 1
    changes.episode = EpisodeRecord(
        session.episode,
        session.first_row,
        session.rows,
        session.outcome_step,
        session.episode_return,
        session.phase,
        session.versions_used,
    )


def no_open_episode(session: Session) -> NoOpenEpisode:
    """The error of a call that needs an open episode."""
    return NoOpenEpisode(
        "the session has no open episode" + (f"; episode {session.episode} is over" if session.episode >= 0 else ""),
        expected="an open episode",
        action="Start one: POST /v1/sessions/{id}/episodes.",
    )
