"""Opening sessions, whichever protocol asks for it."""

import time

from service import schemas
from service.doors import Caller
from service.errors import InvalidRequest, UnknownSession
from service.parts import Parts, find_bundle
from service.policies import Networks
from service.session_state import Loaded, Session
from service.sessions import new_session_id
from service.wire import encode
from training.contract.bundle import Manifest
from training.contract.exploration import Exploration


def create(parts: Parts, wanted: schemas.OpenSession, key: str | None, caller: Caller) -> Loaded:
    """Open a session of the caller's; asked again with the same ``key``, the same one again.

    Raises UnknownBundle, IdempotencyKeyReused, InvalidRequest, TooManySessions.
    """
    session = _new_session(wanted, find_bundle(parts, next(iter(parts.bundles)) if wanted.bundle is None else wanted.bundle), caller.owner)
    if key is None:
        return _create(parts, session, caller)
    session.session_id = parts.created.claim(key, encode(wanted), session.session_id)
    return _create_once(parts, session, caller)


def _create_once(parts: Parts, session: Session, caller: Caller) -> Loaded:
    """The session of this id, made if it is not there: it may be, or its creator may have died before it made it."""
    try:
        return parts.store.load(session.session_id)
    except UnknownSession:
        _create(parts, session, caller)
        return parts.store.load(session.session_id)


def _create(parts: Parts, session: Session, caller: Caller) -> Loaded:
    parts.session_cap.admit(caller.owner, has_token=caller.token_id is not None)
    loaded, new = parts.store.create(session)
    if new:  # not so for a repetition that came while the first request was at work
        parts.metrics.sessions.inc()
    return loaded


def _new_session(wanted: schemas.OpenSession, networks: Networks, owner: str) -> Session:
    now, manifest = time.time(), networks.bundle.manifest
    return Session(
        session_id=new_session_id(owner),
        bundle=manifest.name,
        digest=networks.digest,
        seed=wanted.seed,
        conditioning_episodes=manifest.conditioning_episodes if wanted.conditioning_episodes is None else wanted.conditioning_episodes,
        exploration=_offered(wanted.exploration or manifest.exploration, manifest),
        finetuning=wanted.finetuning,
        deterministic=wanted.deterministic,
        ttl_s=wanted.ttl_s,
        share_skills=wanted.share_skills,
        promotion=wanted.promotion,
        created_at=now,
        expires_at=now + wanted.ttl_s,
    )


def _offered(wanted: Exploration, manifest: Manifest) -> Exploration:
    if wanted not in manifest.explorations:
        offered = [each.value for each in manifest.explorations]
        raise InvalidRequest(
            f"bundle {manifest.name} offers no exploration {wanted.value!r}",
            expected=offered,
            received=wanted.value,
            action="Choose one of those, or serve a bundle that offers it: `python -m training belief` makes what `belief` takes, and with "
            "belief.dynamics_updates what `novelty` takes.",
        )
    return wanted
