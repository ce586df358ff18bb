"""The rules of an episode: which action comes next. No I/O: a session goes in and comes out changed.

Actions and transitions advance separately: a client may act ahead and post transitions later (`service.recording`).
"""

from service import schemas
from service.observations import outside
from service.policies import MetaPolicy, Networks
from service.recording import ended_at, no_open_episode
from service.session_errors import WrongStep
from service.session_state import Explored, Followed, LastAction, Loaded, OpenSkill, Posterior, Session, WayBack
from training.contract.belief import Belief, Following
from training.contract.context import Floats, pack_rows, unpack_rows, unpack_vector
from training.contract.exploration import (
    DETOUR_SKILLS,
    Exploration,
    Phase,
    automatic_phase,
    detour_after,
    embedding_beyond,
    exploratory_embedding,
    in_turn,
    plan_episode,
    skill_noise,
)
from training.contract.novelty import Novelty, Places, overdue


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


def explores_posterior(session: Session, phase: Phase) -> bool:
    """Whether an episode in ``phase`` explores with an embedding from the task posterior."""
    return session.exploration.asks_posterior(phase, rewarded=session.rewarded)


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
        posterior=(posterior.mean, posterior.scale) if explores_posterior(session, phase) else None,
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
        skill = _choose_skill(session, state, networks, policy)
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


def follows_versions(session: Session) -> bool:
    """Whether the episode's skills are chosen with the session's newest version."""
    return session.phase is Phase.FINETUNING or (session.phase is Phase.ADAPTED and session.forced_phase is None)


def goes_beyond(session: Session, networks: Networks) -> bool:
    """Whether the next skill explores beyond what the session knows, because its episode has nothing left to gain by that, or is overdue.

    Not where the client asked for something else: mean skills, or a phase when the episode began. An episode that has begun to stays so.
    """
    has_route = session.explored is not None and bool(session.explored.route)
    if not (networks.goes_beyond or has_route) or session.deterministic:
        return False
    if session.beyond_from >= 0:
        return True
    if not session.may_go_beyond:
        return False
    if has_route and (novelty := _novelty(session, networks)) is not None:
        if session.pending or session.outcome_step < session.act_step:  # what the episode has earned is not known yet
            return False
        return overdue(_places(session, novelty), session.act_step // networks.spec.skill_horizon, earned=session.episode_return)
    return session.exploration.nothing_left(earned=session.episode_return, returns=session.recent_returns)


def on_detour(session: Session, step: int, horizon: int) -> bool:
    """Whether the skill of ``step`` is one of the episode's detour."""
    return 0 <= session.detour_from <= step < session.detour_from + DETOUR_SKILLS * horizon


def _takes_detour(session: Session, networks: Networks) -> bool:
    """Whether the next skill is one of a detour, which begins with it where it is due."""
    due = session.detour_after is not None and networks.takes_detours and session.episode_return >= session.detour_after
    if due and session.detour_from < 0:
        session.detour_from = session.act_step
    return on_detour(session, session.act_step, networks.spec.skill_horizon)


def _choose_skill(session: Session, state: Floats, networks: Networks, policy: MetaPolicy) -> OpenSkill:
    spec, step = networks.spec, session.act_step
    skill_index = step // spec.skill_horizon
    noise = None if session.deterministic else skill_noise(session.seed, session.episode, step, spec.skill_dim)
    explores = session.phase is Phase.EXPLORING and not session.use_skill_prior and not session.task_version
    novelty = _novelty(session, networks)
    if explores and novelty is not None and not session.deterministic:
        return _begin_skill(session, state, _planned(session, state, networks, novelty), policy, networks)
    note_way(session, step, state, networks)
    if beyond := goes_beyond(session, networks):
        session.beyond_from = step if session.beyond_from < 0 else session.beyond_from
    if beyond and novelty is not None:
        chosen = novelty.retrace(
            _places(session, novelty), state, seed=session.seed, episode=session.episode, skill_index=skill_index, skill_dim=spec.skill_dim
        )
        return _begin_skill(session, state, chosen, networks.meta_policy, networks, known=False)
    plain, detour = session.use_skill_prior, not beyond and _takes_detour(session, networks)
    if detour:
        plain, policy = True, networks.meta_policy
        embedding = unpack_rows(session.embedding, spec.task_embedding_dim)[0]  # which the plain skill prior does not look at
    elif beyond:
        assert networks.belief is not None
        policy = networks.meta_policy
        embedding = embedding_beyond(networks.belief, seed=session.seed, episode=session.episode, skill_index=skill_index)
    elif explores:
        embedding = _explored(session, state, networks)
    elif policy.task_embedding is None:
        embedding = in_turn(unpack_rows(session.embedding, spec.task_embedding_dim), skill_index)
    else:
        embedding = policy.task_embedding
    chosen = policy.choose_skill(state, embedding, noise, use_skill_prior=plain)
    return _begin_skill(session, state, chosen, policy, networks, known=not beyond and not detour)


def note_way(session: Session, step: int, state: Floats, networks: Networks) -> None:
    """Note the state [S] in which a skill is chosen at ``step``, where the session may go back the way that it came."""
    novelty = _novelty(session, networks)
    if novelty is not None and session.explored is not None and session.explored.route:
        after = novelty.on_the_way(_places(session, novelty), state, skill_index=step // networks.spec.skill_horizon)
        session.explored.track = pack_rows(after.track)


def _begin_skill(
    session: Session, state: Floats, chosen: Floats, policy: MetaPolicy, networks: Networks, *, known: bool = True
) -> OpenSkill:
    """``known``: it is what the session knows that chose the skill, and not what explores beyond that."""
    if known:
        _note_version(session, policy.version, networks)
    session.skills.append(OpenSkill(session.act_step, pack_rows(state), pack_rows(chosen), policy.version))
    return session.skills[-1]


def _note_version(session: Session, version: int, networks: Networks) -> None:
    if follows_versions(session):
        if session.forced_phase is None:
            session.phase = Phase.FINETUNING if version else Phase.ADAPTED
        if version < session.newest_version:  # the session went back: what it earned since is not what it knows now
            session.recent_returns, session.recent_completed = [], []
            if session.detour_from < 0:
                session.detour_after = None
        session.newest_version = version
    # An episode that is to take a detour counts for no version, whether it comes to it or not: only the better ones do.
    if version not in session.versions_used and not (networks.takes_detours and session.detour_after is not None):
        session.versions_used.append(version)


def _explored(session: Session, state: Floats, networks: Networks) -> Floats:
    """The embedding [E] of a session that knows nothing of its task yet, for one skill."""
    spec, belief = networks.spec, networks.belief
    before = None if session.followed is None or belief is None else following(session, belief)
    embedding, now = exploratory_embedding(
        session.exploration, belief, before, state, seed=session.seed, episode=session.episode,
        skill_index=session.act_step // spec.skill_horizon, rewarded=session.rewarded, task_embedding_dim=spec.task_embedding_dim,
    )  # fmt: skip
    if now is not None:
        session.followed = Followed(pack_rows(now.plausibility), now.particle, now.since, now.hope)
    return embedding


def _novelty(session: Session, networks: Networks) -> Novelty | None:
    """What the session explores with, where that is novelty."""
    return None if session.exploration is not Exploration.NOVELTY or networks.belief is None else networks.belief.novelty


def _places(session: Session, novelty: Novelty) -> Places:
    """Where the session has been."""
    if (kept := session.explored) is None:
        return novelty.begin()
    return Places(*(unpack_rows(points, len(novelty.projection)) for points in (kept.seen, kept.aimed, kept.track, kept.route)))


def _planned(session: Session, state: Floats, networks: Networks, novelty: Novelty) -> Floats:
    """The skill [Z] of a session that explores by novelty and knows nothing of its task yet. What it sees speaks against particles too."""
    spec = networks.spec
    skill, after = novelty.plan(
        _places(session, novelty), state, seed=session.seed, episode=session.episode, skill_index=session.act_step // spec.skill_horizon,
        skill_dim=spec.skill_dim,
    )  # fmt: skip
    session.explored = Explored(*map(pack_rows, (after.seen, after.aimed, after.track, after.route)))
    if networks.belief is not None and not session.rewarded:
        now = following(session, networks.belief)
        session.followed = Followed(pack_rows(networks.belief.seen_in_vain(now.plausibility, state)), now.particle, now.since, now.hope)
    return skill


def following(session: Session, belief: Belief) -> Following:
    """What a session that explores by a belief has ruled out and follows."""
    followed = session.followed
    if followed is None:
        return belief.begin()
    return Following(unpack_vector(followed.plausibility), followed.particle, followed.since, followed.hope)


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
