"""The rules of an episode: which action comes next. No I/O: a session goes in and comes out changed.

Actions and transitions advance separately: a client may act ahead and post transitions later (`service.recording`).
"""

from service import schemas
from service.observations import outside
from service.policies import MetaPolicy, Networks
from service.recording import ended_at, no_open_episode
from service.session_errors import WrongStep
from service.session_state import Explored, LastAction, Loaded, OpenSkill, Posterior, Session, WayBack
from service.skill_choice import choose_skill, follows_versions
from training.contract.context import Floats, pack_rows, unpack_vector
from training.contract.exploration import Phase, automatic_phase, detour_after, plan_episode


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


def explores_posterior(session: Session, phase: Phase, episode: int) -> bool:
    """Whether episode number ``episode``, in ``phase``, explores with an embedding from the task posterior."""
    return session.exploration.asks_posterior(phase, episode=episode, rewarded=session.rewarded)


def begin_episode(
    session: Session, phase: Phase, posterior: Posterior, candidates: Floats | None = None, way_back: WayBack | None = None
) -> None:
    """Open the next episode. What it acts with is fixed here: an embedding drawn for it, the posterior's mean, or ``candidates`` [n, E].

    ``way_back``: to a reward, once the episode is overdue.
    """
    session.episode += 1
    plan = plan_episode(
        phase,
        seed=session.seed,
        episode=session.episode,
        conditioning_episodes=session.conditioning_episodes,
        task_embedding_dim=len(posterior.mean),
        exploration=session.exploration,
        rewarded=session.rewarded,
        posterior=(posterior.mean, posterior.scale) if explores_posterior(session, phase, session.episode) else None,
        candidates=candidates,
    )
    session.phase, session.use_skill_prior, session.episode_open = phase, plan.use_skill_prior, True
    session.embedding = pack_rows(posterior.mean if plan.task_embedding is None else plan.task_embedding)
    session.task_version = posterior.version if plan.inferred else 0
    session.act_step = session.outcome_step = 0
    session.episode_return, session.first_row = 0.0, session.rows
    session.versions_used, session.skills, session.skipped = [], [], False
    session.may_go_beyond, session.beyond_from, session.beyond_return = session.forced_phase is None, -1, 0.0
    session.detour_from, session.detour_after = -1, None
    if session.may_go_beyond and session.finetuning and not session.deterministic and phase is not Phase.EXPLORING:
        session.detour_after = detour_after(
            session.exploration, seed=session.seed, episode=session.episode, conditioning_episodes=session.conditioning_episodes,
            returns=session.recent_returns, completed=session.recent_completed,
        )  # fmt: skip
    session.last_action, session.last_outcome = None, None
    session.held, session.pending, session.ended = [], {}, None
    if session.rewarded:  # from now on it goes where rewards are
        session.explored = None if way_back is None else Explored(route=pack_rows(way_back.route))
        if way_back is not None and len(way_back.route) and way_back.at_once and session.may_go_beyond and not session.deterministic:
            session.beyond_from = 0


def wanted_version(loaded: Loaded, horizon: int) -> int | None:
    """The policy version that the next action needs; None when a running skill is kept or no episode is open."""
    return None if _running_skill(loaded.session, horizon) is not None else next_version(loaded, horizon)


def next_version(loaded: Loaded, horizon: int) -> int | None:
    """The policy version that the next choice of a skill needs, even while one runs; None when no episode is open."""
    session = loaded.session
    if not session.episode_open:
        return None
    return loaded.current_version if follows_versions(session) else 0


def act(session: Session, step: int, state: Floats, *, networks: Networks, policy: MetaPolicy | None, max_ahead: int) -> schemas.Action:
    """The action for one step, from ``state`` [S]; asked again for the newest step, the same answer again.

    ``policy`` is that of `wanted_version`. Raises NoOpenEpisode or WrongStep.
    """
    due = begin_act(session, step, state, networks=networks, policy=policy, max_ahead=max_ahead)
    if isinstance(due, schemas.Action):
        return due
    return finish_act(session, step, state, networks.decode(state, due), networks)


def begin_act(
    session: Session, step: int, state: Floats, *, networks: Networks, policy: MetaPolicy | None, max_ahead: int
) -> schemas.Action | Floats:
    """The first half of `act`: the skill [Z] that is to be decoded in ``state``; or the answer, if it was given before."""
    if session.last_action is not None and step == session.last_action.step:
        return _reply(session, session.last_action, replayed=True)
    if not session.episode_open or ended_at(session) is not None:
        raise no_open_episode(session)
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
        skill = choose_skill(session, state, networks, policy)
    chosen: Floats = unpack_vector(skill.skill)
    return chosen


def finish_act(session: Session, step: int, state: Floats, wanted: Floats, networks: Networks) -> schemas.Action:
    """The second half: the action that was decoded [A], held inside the envelope, becomes the session's newest."""
    skill = session.skills[-1]
    action, limited = networks.guard.limit(wanted, None if session.last_action is None else session.last_action.action)
    session.act_step += 1
    session.last_action = LastAction(
        step,
        action.tolist(),
        step - skill.start,
        skill.policy_version,
        session.task_version,
        session.phase,
        list(limited),
        outside(state, networks),
        unpack_vector(skill.skill).tolist() if session.share_skills and step == skill.start else None,
    )
    return _reply(session, session.last_action, replayed=False)


def over(session: Session, step: int, *, replayed: bool) -> schemas.Action:
    """The reply after an episode's last step."""
    version = session.last_action.policy_version if session.last_action else 0
    return schemas.Action(session.episode, step, None, None, version, session.task_version, session.phase, True, replayed)


def _running_skill(session: Session, horizon: int) -> OpenSkill | None:
    skill = session.skills[-1] if session.skills else None
    return skill if skill is not None and session.act_step - skill.start < horizon else None


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
        last.limited,
        last.outside,
        last.skill,
    )


def _wrong_step(session: Session, step: int) -> WrongStep:
    return WrongStep(
        f"the next step to act in episode {session.episode} is {session.act_step}",
        expected=session.act_step,
        received=step,
        action="Ask for each step once, in order; only the newest action can be asked for again.",
    )
