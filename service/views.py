"""Replies made from what is stored."""

import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from service import acting, schemas
from service.policies import Networks
from service.recording import gaps, pending_rewards
from service.session_state import Loaded, Posterior
from service.tokens import Token
from service.versions import Progress
from training.contract.belief import effective_number, entropy
from training.contract.context import Floats

SHOWN_PARTICLES = 5
"""Particles of a belief that are told."""


def session_view(loaded: Loaded, task_version: int, *, networks: Networks | None = None, closed: bool = False) -> schemas.SessionView:
    """Where a session stands; the phase is that of the open episode, else the one that the next will have.

    With ``networks`` it tells what to send and which limits hold; a limit that is infinite is null.
    """
    session = loaded.session
    return schemas.SessionView(
        session_id=session.session_id,
        bundle=schemas.BundleName(session.bundle, session.digest),
        seed=session.seed,
        phase=session.phase if session.episode_open else acting.next_phase(session, loaded.current_version),
        forced_phase=session.forced_phase,
        conditioning_episodes=session.conditioning_episodes,
        exploration=session.exploration,
        finetuning=session.finetuning,
        deterministic=session.deterministic,
        episode=session.episode if session.episode >= 0 else None,
        step=session.act_step,
        episode_open=session.episode_open,
        episodes_completed=session.episodes_completed,
        gaps=gaps(session),
        pending_rewards=pending_rewards(session),
        context_size=session.rows,
        task_version=task_version,
        policy_version=loaded.current_version,
        created_at=timestamp(session.created_at),
        expires_at=timestamp(session.expires_at),
        closed=closed,
        share_skills=session.share_skills,
        promotion=session.promotion,
        specs=msgspec.UNSET if networks is None else finite(networks.spec.model_dump()),
        envelope=msgspec.UNSET if networks is None else finite(networks.guard.envelope.model_dump()),
    )


def task_view(loaded: Loaded, posterior: Posterior, belief: schemas.Belief | None = None) -> schemas.TaskPosterior:
    """The task posterior and the belief."""
    session = loaded.session
    phase = session.phase if session.episode_open else acting.next_phase(session, loaded.current_version)
    return schemas.TaskPosterior(posterior.version, posterior.mean.tolist(), posterior.scale.tolist(), session.rows, phase, belief)


def belief_view(particles: Floats, weights: Floats) -> schemas.Belief:
    """Particles [P, E] and their weights [P], which together are 1."""
    best = [schemas.Particle(particles[i].tolist(), float(weights[i])) for i in np.argsort(-weights, kind="stable")[:SHOWN_PARTICLES]]
    return schemas.Belief(len(particles), effective_number(weights), entropy(weights), best)


def token_view(token: Token, text: str | None = None) -> schemas.TokenView:
    """A token; with ``text`` the token itself, which is told once."""

    def moment(time_s: float | None) -> str | None:
        return None if time_s is None else timestamp(time_s)

    told = msgspec.UNSET if text is None else text
    return schemas.TokenView(
        token.token_id, token.name, token.role, timestamp(token.created_at), moment(token.expires_at), moment(token.revoked_at), told
    )


def policy_view(loaded: Loaded, records: list[schemas.PolicyVersion], history: list[schemas.PolicyEvent]) -> schemas.PolicyVersions:
    """All policy versions, the bundle's own first."""
    own = schemas.PolicyVersion(0, timestamp(loaded.session.created_at), "published", "the bundle's own policy", None, {})
    return schemas.PolicyVersions(loaded.current_version, [own, *records], history)


def finetuning_view(loaded: Loaded, progress: Progress) -> schemas.FinetuningStatus:
    """Where fine-tuning stands."""
    return schemas.FinetuningStatus(
        enabled=loaded.session.finetuning,
        paused=progress.paused,
        state=progress.state,
        episodes_completed=loaded.session.episodes_completed,
        episodes_learned=progress.episodes_learned,
        updates=progress.updates,
        losses=progress.losses,
        policy_version=loaded.current_version,
        error=progress.error,
    )


def caught_up(loaded: Loaded, progress: Progress) -> bool:
    """Whether a learner owes the session nothing at the moment."""
    if progress.state in ("paused", "failed") or not acting.learning_due(loaded.session):
        return True
    return progress.episodes_learned >= loaded.session.episodes_completed


def bundle_view(networks: Networks) -> dict[str, Any]:
    """The manifest without its golden vectors and particles, with the digest over all files."""
    manifest = networks.bundle.manifest.model_dump(exclude={"golden", "particles"})
    return {**finite(manifest), "digest": networks.digest}


def finite(value: Any) -> Any:
    """``value`` with null for numbers that JSON cannot hold (a limit that is infinite)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def timestamp(time_s: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
