"""Folding transitions into skill transitions, and those into episodes. No I/O: a session goes in and comes out changed.

Each skill lasts H steps; its transitions are folded into one skill transition, in the order of their steps, when the last has come in. A
transition whose reward is to follow counts as 0 until `add_late_reward`; an episode that is over is *settled*, and may be learned from,
once no reward is missing or the next episode begins.
"""

from service.policies import Networks
from service.session_state import Changes, EpisodeRecord, OpenSkill, Outcome, Session
from training.contract.context import ContextLayout, unpack_vector
from training.contract.exploration import RECENT_EPISODES


def fold_next(session: Session, outcome: Outcome, changes: Changes, networks: Networks) -> None:
    """Fold in the outcome of step ``session.outcome_step``; one that ends the episode completes it."""
    skill, ends = session.skills[0], outcome.terminated or outcome.truncated
    _fold(session, skill, outcome)
    if ends or skill.outcomes == networks.spec.skill_horizon:
        _complete_skill(session, changes, networks, outcome)
    if ends:
        _complete_episode(session, changes)


def end_as_truncated(session: Session, changes: Changes, networks: Networks) -> list[int]:
    """End the open episode. Each skill keeps its outcomes up to its first gap. Returns the held steps that could not be kept."""
    held = {outcome.step: outcome for outcome in session.held}
    for skill in session.skills.copy():
        last = session.last_outcome if skill.outcomes else None
        while (step := skill.start + skill.outcomes) in held and skill.outcomes < networks.spec.skill_horizon:
            last = held.pop(step)
            _fold(session, skill, last)
        if last is None:
            session.skills.pop(0)
            session.skipped = True
        else:
            _complete_skill(session, changes, networks, last)
    _complete_episode(session, changes)
    return sorted(held)


def settle(session: Session, changes: Changes) -> list[int]:
    """Count an episode that is over as completed. Returns the steps whose rewards never came; they count as 0."""
    missing = sorted(session.pending)
    session.unsettled, session.pending = False, {}
    session.episodes_completed += 1
    changes.episode = EpisodeRecord(
        session.episode,
        session.first_row,
        session.rows,
        session.outcome_step,
        session.episode_return,
        session.phase,
        session.versions_used,
        session.beyond_from,
        session.beyond_return,
        session.skipped,
    )
    session.recent_returns = [*session.recent_returns, session.episode_return][-RECENT_EPISODES:]
    completed = session.last_outcome is not None and session.last_outcome.terminated and session.episode_return > 0
    session.recent_completed = [*session.recent_completed, completed][-RECENT_EPISODES:]
    return missing


def add_late_reward(session: Session, step: int, reward: float, changes: Changes, layout: ContextLayout) -> None:
    """Add the reward of a folded step that was to follow: to its running skill, or to the skill transition that is stored already."""
    row = session.pending.pop(step)
    _earn(session, step, reward)
    if row >= session.rows:
        session.skills[row - session.rows].reward += reward
    else:
        changes.late_rewards.append((4 * (row * layout.width + layout.reward), reward))
        session.revision += 1
    if session.unsettled and not session.pending:
        settle(session, changes)


def _fold(session: Session, skill: OpenSkill, outcome: Outcome) -> None:
    skill.outcomes += 1
    session.outcome_step += 1
    session.last_outcome = outcome
    if outcome.reward is None:
        session.pending[outcome.step] = session.rows + session.skills.index(skill)
    else:
        skill.reward += outcome.reward
        _earn(session, outcome.step, outcome.reward)


def _earn(session: Session, step: int, reward: float) -> None:
    session.rewarded = session.rewarded or reward != 0
    session.episode_return += reward
    if 0 <= session.beyond_from <= step:
        session.beyond_return += reward


def _complete_skill(session: Session, changes: Changes, networks: Networks, last: Outcome) -> None:
    skill = session.skills.pop(0)
    state, chosen, next_state = unpack_vector(skill.state), unpack_vector(skill.skill), unpack_vector(last.next_state)
    row = networks.layout.row(state, chosen, skill.reward, last.terminated, next_state)
    changes.rows.append(row)
    session.rows += 1


def _complete_episode(session: Session, changes: Changes) -> None:
    """An episode without a transition leaves nothing to learn from and does not count as completed."""
    session.episode_open = False
    session.skills, session.held = [], []
    if session.outcome_step == 0:
        return
    session.unsettled = True
    if not session.pending:
        settle(session, changes)
