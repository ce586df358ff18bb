"""The rules of an episode: which action comes next, and what a transition changes. No I/O: a session goes in and comes out changed.

Actions and transitions advance separately: a client may act ahead and post transitions later, in order. Each skill lasts H steps; its
transitions are folded into one skill transition when the last of them has come in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service import schemas
from service.errors import (
    DuplicateTransition,
    InvalidObservation,
    NoOpenEpisode,
    StepNotActed,
    TransitionOutOfOrder,
    WrongEpisode,
    WrongStep,
)
from service.policies import MetaPolicy, Networks
from service.sessions import Changes, EpisodeRecord, LastAction, LastOutcome, Loaded, OpenSkill, Posterior, Session
from training.contract.context import Floats, pack_rows, unpack_rows
from training.contract.exploration import Phase, automatic_phase, drawn_embedding, plan_episode, skill_noise
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


def check_observation(values: list[float], spec: VectorSpec, path: str) -> Floats:
    """The observation as float32 [S]. Raises InvalidObservation when its length is wrong or a number does not fit float32."""
    if len(values) != spec.dim:
        raise InvalidObservation(
            f"{path}: expected {spec.dim} numbers, got {len(values)}",
            expected={"length": spec.dim, "names": spec.names, "units": spec.units},
            received={"length": len(values)},
            action="Send one number for each name, in this order.",
        )
    with np.errstate(over="ignore"):
        state = np.array(values, np.float32)
    if not np.isfinite(state).all():
        index = int(np.flatnonzero(~np.isfinite(state))[0])
        raise InvalidObservation(
            f"{path}[{index}] ({spec.names[index]}): expected a finite float32 number, got {values[index]!r}",
            expected="a finite float32 number",
            received=repr(values[index]),
            action="Leave out or repair readings that are not finite before sending them.",
        )
    return state


def check_outcome(transition: schemas.Transition, spec: VectorSpec, path: str) -> Outcome:
    """The transition with its observation checked. Raises InvalidObservation."""
    state = check_observation(transition.next_observation, spec, f"{path}.next_observation")
    return Outcome(transition.episode, transition.step, transition.reward, state, transition.terminated, transition.truncated)


def next_phase(session: Session, current_version: int) -> Phase:
    """The phase that the next episode will have."""
    if session.forced_phase is not None:
        return session.forced_phase
    return automatic_phase(
        session.episodes_completed, session.conditioning_episodes, rewarded=session.rewarded, finetuned=current_version > 0
    )


def learning_due(session: Session) -> bool:
    """Whether the session's completed episodes are there to be learned from."""
    phase = next_phase(session, 0)
    forced_still = session.forced_phase is not None and phase is not Phase.FINETUNING
    return session.finetuning and session.episodes_completed > 0 and phase is not Phase.EXPLORING and not forced_still


def begin_episode(session: Session, phase: Phase, posterior: Posterior) -> None:
    """Open the next episode. What it acts with is fixed here: the embedding drawn for it, or the posterior's mean."""
    session.episode += 1
    plan = plan_episode(
        phase,
        seed=session.seed,
        episode=session.episode,
        conditioning_episodes=session.conditioning_episodes,
        task_embedding_dim=len(posterior.mean),
        exploration=session.exploration,
    )
    acts_on_posterior = plan.task_embedding is None and not plan.use_skill_prior
    session.phase, session.use_skill_prior, session.episode_open = phase, plan.use_skill_prior, True
    session.embedding = pack_rows(posterior.mean if plan.task_embedding is None else plan.task_embedding)
    session.task_version = posterior.version if acts_on_posterior else 0
    session.act_step = session.outcome_step = 0
    session.episode_return, session.first_row = 0.0, session.rows
    session.versions_used, session.skills = [], []
    session.last_action, session.last_outcome = None, None


def end_episode(session: Session, changes: Changes, networks: Networks) -> schemas.EndedEpisode:
    """End the open episode as truncated."""
    if session.skills and session.skills[0].outcomes and session.last_outcome is not None:
        last = session.last_outcome
        next_state = unpack_rows(last.next_state, networks.spec.state_dim)[0]
        _complete_skill(session, changes, networks, next_state, terminated=False)
    _complete_episode(session, changes)
    return schemas.EndedEpisode(session.episode, session.outcome_step)


def wanted_version(loaded: Loaded, horizon: int) -> int | None:
    """The policy version that the next action needs; None when a running skill is kept or no episode is open."""
    session = loaded.session
    if not session.episode_open or _running_skill(session, horizon) is not None:
        return None
    return loaded.current_version if _follows_versions(session) else 0


def act(session: Session, step: int, state: Floats, *, networks: Networks, policy: MetaPolicy | None, max_ahead: int) -> schemas.Action:
    """The action for one step, from ``state`` [S]; asked again for the newest step, the same answer again.

    ``policy`` is that of `wanted_version`. Raises NoOpenEpisode or WrongStep.
    """
    if session.last_action is not None and step == session.last_action.step:
        return _reply(session, session.last_action, replayed=True)
    if not session.episode_open:
        raise _no_open_episode(session)
    if step != session.act_step:
        raise _wrong_step(session, step)
    if step - session.outcome_step >= max_ahead:
        raise WrongStep(
            f"{max_ahead} steps were acted without a transition",
            expected=f"transitions from step {session.outcome_step} on",
            received=f"act for step {step}",
            action="Post the transitions of the steps acted so far.",
        )
    skill = _running_skill(session, networks.spec.skill_horizon)
    if skill is None:
        if policy is None:
            raise RuntimeError("a skill is due: act needs the policy version that wanted_version names")
        skill = _choose_skill(session, state, networks, policy)
    action = networks.decode(state, unpack_rows(skill.skill, networks.spec.skill_dim)[0])
    session.act_step += 1
    session.last_action = LastAction(step, action.tolist(), step - skill.start, skill.policy_version, session.task_version, session.phase)
    return _reply(session, session.last_action, replayed=False)


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


def over(session: Session, step: int, *, replayed: bool) -> schemas.Action:
    """The reply after an episode's last step."""
    version = session.last_action.policy_version if session.last_action else 0
    return schemas.Action(session.episode, step, None, None, version, session.task_version, session.phase, True, replayed)


def gaps(session: Session) -> list[int]:
    """Steps that were acted and have no transition yet."""
    return list(range(session.outcome_step, session.act_step)) if session.episode_open else []


def check_episode(session: Session, episode: int) -> None:
    """Raise NoOpenEpisode before the first episode, WrongEpisode for any but the open or last one."""
    if session.episode < 0:
        raise _no_open_episode(session)
    if episode != session.episode:
        raise WrongEpisode(
            f"the session is in episode {session.episode}",
            expected=session.episode,
            received=episode,
            action="Use the number that starting the episode returned.",
        )


def _running_skill(session: Session, horizon: int) -> OpenSkill | None:
    skill = session.skills[-1] if session.skills else None
    return skill if skill is not None and session.act_step - skill.start < horizon else None


def _follows_versions(session: Session) -> bool:
    return session.phase is Phase.FINETUNING or (session.phase is Phase.ADAPTED and session.forced_phase is None)


def _choose_skill(session: Session, state: Floats, networks: Networks, policy: MetaPolicy) -> OpenSkill:
    spec, step = networks.spec, session.act_step
    noise = None if session.deterministic else skill_noise(session.seed, session.episode, step, spec.skill_dim)
    embedding = policy.task_embedding
    if session.phase is Phase.EXPLORING and not session.use_skill_prior:
        skill_index = step // spec.skill_horizon
        embedding = drawn_embedding(session.exploration, session.seed, session.episode, skill_index, spec.task_embedding_dim)
    elif embedding is None:
        embedding = unpack_rows(session.embedding, spec.task_embedding_dim)[0]
    chosen = policy.choose_skill(state, embedding, noise, use_skill_prior=session.use_skill_prior)
    if _follows_versions(session) and session.forced_phase is None:
        session.phase = Phase.FINETUNING if policy.version else Phase.ADAPTED
    if policy.version not in session.versions_used:
        session.versions_used.append(policy.version)
    session.skills.append(OpenSkill(step, pack_rows(state), pack_rows(chosen), policy.version))
    return session.skills[-1]


def _check_turn(session: Session, outcome: Outcome) -> None:
    if not session.episode_open:
        raise _no_open_episode(session)
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


def _reply(session: Session, last: LastAction, *, replayed: bool) -> schemas.Action:
    return schemas.Action(
        session.episode,
        last.step,
        last.action,
        last.skill_step,
        last.policy_version,
        last.task_version,
        last.phase,
        False,
        replayed,
    )


def _no_open_episode(session: Session) -> NoOpenEpisode:
    return NoOpenEpisode(
        "the session has no open episode" + (f"; episode {session.episode} is over" if session.episode >= 0 else ""),
        expected="an open episode",
        action="Start one: POST /v1/sessions/{id}/episodes.",
    )


def _wrong_step(session: Session, step: int) -> WrongStep:
    return WrongStep(
        f"the next step to act in episode {session.episode} is {session.act_step}",
        expected=session.act_step,
        received=step,
        action="Ask for each step once, in order; only the newest action can be asked for again.",
    )
