"""Taking in what lossy links deliver: transitions late, twice or out of order, and rewards that follow. No I/O, no clock.

Each item is stored, held until the steps before it have come, a duplicate (no effect), or refused with a reason; none is dropped unnamed.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from service import schemas
from service.folding import add_late_reward, end_as_truncated, fold_next, settle
from service.observations import check_observation
from service.policies import Networks
from service.schemas import ItemResult, ItemStatus
from service.session_errors import Conflict, DuplicateTransition, NoOpenEpisode, StepNotActed, TransitionOutOfOrder, WrongEpisode
from service.session_log import Reported, Rewarded
from service.session_state import Changes, Outcome, Session
from training.contract.context import ContextLayout, pack_rows

Item = TypeVar("Item")


def check_outcome(transition: schemas.Transition, networks: Networks, path: str) -> Outcome:
    """The transition with its observation checked. Raises InvalidObservation."""
    state = check_observation(transition.next_observation, networks, f"{path}.next_observation")
    return Outcome(transition.step, transition.reward, pack_rows(state), transition.terminated, transition.truncated)


def record(
    session: Session, items: Sequence[tuple[schemas.Transition, Outcome]], changes: Changes, networks: Networks, window: int
) -> list[ItemResult]:
    """Take in transitions; up to ``window`` steps may be held for one that is missing. Returns what became of each, in order.

    When all are refused, the first one's error is raised: a Conflict. The session is then to be thrown away, not saved.
    """
    return _each(items, lambda item: place(session, *item, changes, networks, window), lambda item: item[0])


def record_rewards(session: Session, rewards: Sequence[schemas.LateReward], changes: Changes, layout: ContextLayout) -> list[ItemResult]:
    """Take in rewards of transitions that were sent without one. Returns and raises as `record`."""
    return _each(rewards, lambda item: _place_reward(session, item, changes, layout), lambda item: item)


def end_episode(session: Session, changes: Changes, networks: Networks) -> schemas.EndedEpisode | None:
    """End the episode, as truncated if it is open. Rewards may still follow. Returns what it is without, None when nothing is missing."""
    if session.episode_open:
        missing_steps = gaps(session)
        discarded = end_as_truncated(session, changes, networks)
        session.ended = schemas.EndedEpisode(session.episode, session.outcome_step, missing_steps, discarded, [])
    if not session.pending:
        return session.ended
    ended = session.ended or schemas.EndedEpisode(session.episode, session.outcome_step, [], [], [])
    return msgspec.structs.replace(ended, missing_rewards=sorted(session.pending))


def close_episode(session: Session, changes: Changes, networks: Networks) -> None:
    """End the episode without the rewards that have not come. `Session.ended` says what was left out."""
    session.ended = end_episode(session, changes, networks)
    if session.unsettled:
        settle(session, changes)


def ended_at(session: Session) -> int | None:
    """The step that ends the open episode, if its outcome is held and waits for earlier ones."""
    last = session.held[-1] if session.held else None
    return last.step if last is not None and (last.terminated or last.truncated) else None


def gaps(session: Session) -> list[int]:
    """Steps of the open episode that were acted and have no transition yet."""
    if not session.episode_open:
        return []
    held, end = {outcome.step for outcome in session.held}, ended_at(session)
    return [step for step in range(session.outcome_step, session.act_step if end is None else end) if step not in held]


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


def pending_rewards(session: Session) -> list[int]:
    """Steps whose reward is to follow."""
    return sorted([*session.pending, *(outcome.step for outcome in session.held if outcome.reward is None)])


def check_newest(session: Session, step: int) -> None:
    """Raise DuplicateTransition when the outcome of ``step``, which is stored already, is not the one that the newest answer was for."""
    end = ended_at(session)
    if not session.episode_open and session.last_outcome is not None:
        end = session.last_outcome.step
    if step != end if end is not None else step + 1 not in (session.act_step - 1, session.act_step):
        raise DuplicateTransition(
            f"the transition of step {step} is stored already, and later steps were acted",
            expected=f"step {session.outcome_step}",
            received=f"step {step}",
            action="Go on with the next step.",
        )


def no_open_episode(session: Session) -> NoOpenEpisode:
    """The error of a call that needs an open episode."""
    end = ended_at(session)
    over = f"; episode {session.episode} is over" + (f" with step {end}" if end is not None else "")
    return NoOpenEpisode(
        "the session has no open episode" + (over if session.episode >= 0 else ""),
        expected="an open episode",
        action="Start one: POST /v1/sessions/{id}/episodes."
        if end is None
        else "Post the transitions that are missing, or start the next.",
    )


def _each(
    items: Sequence[Item], place: Callable[[Item], ItemStatus], numbered: Callable[[Item], schemas.Transition | schemas.LateReward]
) -> list[ItemResult]:
    results, first_error = [], None
    for item in items:
        code = detail = None
        try:
            status = place(item)
        except Conflict as error:
            status, code, detail = "refused", error.code, error.detail
            first_error = first_error or error
        about = numbered(item)
        results.append(ItemResult(about.episode, about.step, status, code, detail))
    if first_error is not None and all(result.status == "refused" for result in results):
        raise first_error
    return results


def place(
    session: Session, transition: schemas.Transition, outcome: Outcome, changes: Changes, networks: Networks, window: int
) -> ItemStatus:
    """Take in one transition. Raises Conflict when it is refused; the session is then to be thrown away, not saved."""
    check_episode(session, transition.episode)
    if _stored(session, outcome):
        return "duplicate"
    _check_turn(session, outcome, window)
    changes.transitions += 1
    changes.events.append(Reported(outcome.step, outcome.reward, outcome.next_state, outcome.terminated, outcome.truncated))
    if outcome.step > session.outcome_step:
        insort(session.held, outcome, key=lambda held: held.step)
        return "held"
    fold_next(session, outcome, changes, networks)
    while session.held and session.held[0].step == session.outcome_step:
        fold_next(session, session.held.pop(0), changes, networks)
    return "stored"


def _stored(session: Session, outcome: Outcome) -> bool:
    """Whether the step has its transition. Raises DuplicateTransition when that is known to be another one."""
    known = [each for each in (*session.held, session.last_outcome) if each is not None and each.step == outcome.step]
    if known and not _same(known[0], outcome):
        raise DuplicateTransition(
            f"another outcome of step {outcome.step} is stored already",
            expected="the same transition again, or the next one",
            received="the same step with other numbers",
            action="Send each step's outcome once; a repetition must not differ.",
        )
    return bool(known) or _kept(session, outcome.step)


def _kept(session: Session, step: int) -> bool:
    """Whether the step's transition is in the context. After the end of an episode with gaps its count says nothing of a step."""
    ended = session.ended
    if session.episode_open or ended is None or ended.episode != session.episode:
        return step < session.outcome_step
    missing = {*ended.gaps, *ended.discarded}
    return step < ended.steps + len(missing) and step not in missing


def _same(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes agree; a reward that is to follow agrees with any."""
    rewards_agree = one.reward is None or other.reward is None or one.reward == other.reward
    return rewards_agree and one.next_state == other.next_state and (one.terminated, one.truncated) == (other.terminated, other.truncated)


def _check_turn(session: Session, outcome: Outcome, window: int) -> None:
    end = ended_at(session)
    if not session.episode_open or (end is not None and outcome.step > end):
        raise no_open_episode(session)
    if outcome.step >= session.act_step:
        raise StepNotActed(
            f"step {outcome.step} of episode {session.episode} was never acted",
            expected=f"a step below {session.act_step}",
            received=outcome.step,
            action="Ask for the step's action before posting its outcome.",
        )
    if outcome.step - session.outcome_step >= window:
        raise TransitionOutOfOrder(
            f"step {session.outcome_step} of episode {session.episode} has no transition yet, and only {window} steps are held for it",
            expected=f"a step from {session.outcome_step} to {session.outcome_step + window - 1}",
            received=outcome.step,
            action="Post the steps that `gaps` names first, then this one again.",
        )
    if (outcome.terminated or outcome.truncated) and session.held and session.held[-1].step > outcome.step:
        raise TransitionOutOfOrder(
            f"the episode did not end with step {outcome.step}: the outcome of step {session.held[-1].step} is there",
            expected="an end after all other steps",
            received=outcome.step,
            action="Send the outcomes of one episode only.",
        )


def _place_reward(session: Session, late: schemas.LateReward, changes: Changes, layout: ContextLayout) -> ItemStatus:
    check_episode(session, late.episode)
    if late.step in session.pending:
        changes.events.append(Rewarded(late.step, late.reward))
        add_late_reward(session, late.step, late.reward, changes, layout)
        return "stored"
    held = next((outcome for outcome in session.held if outcome.step == late.step), None)
    if held is not None and held.reward is None:
        changes.events.append(Rewarded(late.step, late.reward))
        held.reward = late.reward
        return "stored"
    if held is None and not _kept(session, late.step):
        raise StepNotActed(
            f"step {late.step} of episode {late.episode} has no transition to add a reward to",
            expected=f"one of the steps {pending_rewards(session)[:10]}",
            received=late.step,
            action="Post the step's transition first." if session.episode_open else "Leave it out: the episode ended without the step.",
        )
    if session.ended is not None and late.step in session.ended.missing_rewards:
        raise NoOpenEpisode(
            f"episode {late.episode} was completed without the reward of step {late.step}",
            expected="a reward before the next episode starts",
            received=late.step,
            action="Leave it out: it counts as 0.",
        )
    return "duplicate"
