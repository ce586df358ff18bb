"""The choice of a skill: by what the session knows of its task, by how it explores, or beyond what it knows. No I/O."""

from service.policies import MetaPolicy, Networks
from service.session_state import Explored, Followed, OpenSkill, Session
from training.contract.belief import Belief, Following
from training.contract.context import Floats, pack_rows, unpack_rows, unpack_vector
from training.contract.exploration import DETOUR_SKILLS, Exploration, Phase, embedding_beyond, exploratory_embedding, in_turn, skill_noise
from training.contract.novelty import Novelty, Places, overdue


def choose_skill(session: Session, state: Floats, networks: Networks, policy: MetaPolicy) -> OpenSkill:
    """The skill that is due at the session's next step, in ``state`` [S], chosen and opened; ``policy`` is the version that it follows."""
    spec, step = networks.spec, session.act_step
    skill_index = step // spec.skill_horizon
    noise = None if session.deterministic else skill_noise(session.seed, session.episode, step, spec.skill_dim)
    explores = session.phase is Phase.EXPLORING and not session.use_skill_prior and not session.task_version
    novelty = _novelty(session, networks)
    if explores and novelty is not None and not session.deterministic:
        return _begin_skill(session, state, _planned(session, state, networks, novelty), policy, networks)
    note_way(session, step, state, networks)
    if beyond := _goes_beyond(session, networks):
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


def _goes_beyond(session: Session, networks: Networks) -> bool:
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
        if rewards_due(session, session.act_step):  # what the episode has earned is not known yet
            return False
        return overdue(_places(session, novelty), session.act_step // networks.spec.skill_horizon, earned=session.episode_return)
    return session.exploration.nothing_left(earned=session.episode_return, returns=session.recent_returns)


def rewards_due(session: Session, step: int) -> bool:
    """Whether rewards of the steps before ``step`` are not known yet, so that nothing can be said to have been in vain."""
    return bool(session.pending) or session.outcome_step < step


def on_detour(session: Session, step: int, horizon: int) -> bool:
    """Whether the skill of ``step`` is one of the episode's detour."""
    return 0 <= session.detour_from <= step < session.detour_from + DETOUR_SKILLS * horizon


def _takes_detour(session: Session, networks: Networks) -> bool:
    """Whether the next skill is one of a detour, which begins with it where it is due."""
    due = session.detour_after is not None and networks.takes_detours and session.episode_return >= session.detour_after
    if due and session.detour_from < 0:
        session.detour_from = session.act_step
    return on_detour(session, session.act_step, networks.spec.skill_horizon)


def note_way(session: Session, step: int, state: Floats, networks: Networks) -> None:
    """Note the state [S] in which a skill is chosen at ``step``, where the session may go back the way that it came."""
    novelty = _novelty(session, networks)
    if novelty is not None and session.explored is not None and session.explored.route:
        after = novelty.on_the_way(_places(session, novelty), state, skill_index=step // networks.spec.skill_horizon)
        session.explored.track = pack_rows(after.track)


def follows_versions(session: Session) -> bool:
    """Whether the episode's skills are chosen with the session's newest version."""
    return session.phase is Phase.FINETUNING or (session.phase is Phase.ADAPTED and session.forced_phase is None)


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
    """The embedding [E] that is not inferred, for one skill."""
    spec, belief = networks.spec, networks.belief
    before = None if session.followed is None or belief is None else following(session, belief)
    embedding, now = exploratory_embedding(
        session.exploration, belief, before, state, seed=session.seed, episode=session.episode,
        skill_index=session.act_step // spec.skill_horizon, conditioning_episodes=session.conditioning_episodes, rewarded=session.rewarded,
        task_embedding_dim=spec.task_embedding_dim, in_vain=not rewards_due(session, session.act_step),
    )  # fmt: skip
    if now is not None:
        session.followed = Followed(pack_rows(now.plausibility), now.particle, now.since, now.hope)
    elif session.exploration is Exploration.NOVELTY:  # deterministic
        _note_in_vain(session, state, networks)
    return embedding


def _planned(session: Session, state: Floats, networks: Networks, novelty: Novelty) -> Floats:
    """The skill [Z] of a session that explores by novelty and knows nothing of its task yet."""
    spec = networks.spec
    skill, after = novelty.plan(
        _places(session, novelty), state, seed=session.seed, episode=session.episode, skill_index=session.act_step // spec.skill_horizon,
        skill_dim=spec.skill_dim,
    )  # fmt: skip
    session.explored = Explored(*map(pack_rows, (after.seen, after.aimed, after.track, after.route)))
    _note_in_vain(session, state, networks)
    return skill


def _note_in_vain(session: Session, state: Floats, networks: Networks) -> None:
    """What a session that explores by novelty sees speaks against particles too, though it follows none: `GET /task` tells it."""
    if networks.belief is not None and not session.rewarded and not rewards_due(session, session.act_step):
        now = following(session, networks.belief)
        session.followed = Followed(pack_rows(networks.belief.seen_in_vain(now.plausibility, state)), now.particle, now.since, now.hope)


def following(session: Session, belief: Belief) -> Following:
    """What a session that explores by a belief has ruled out and follows."""
    followed = session.followed
    if followed is None:
        return belief.begin()
    return Following(unpack_vector(followed.plausibility), followed.particle, followed.since, followed.hope)


def _novelty(session: Session, networks: Networks) -> Novelty | None:
    """What the session explores with, where that is novelty."""
    return None if session.exploration is not Exploration.NOVELTY or networks.belief is None else networks.belief.novelty


def _places(session: Session, novelty: Novelty) -> Places:
    """Where the session has been."""
    if (kept := session.explored) is None:
        return novelty.begin()
    return Places(*(unpack_rows(points, len(novelty.projection)) for points in (kept.seen, kept.aimed, kept.track, kept.route)))
