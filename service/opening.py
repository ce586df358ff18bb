"""Opening sessions, whichever protocol asks for it."""

import time

from service import schemas
from service.doors import Caller
from service.errors import UnknownSession
from service.parts import Parts, find_bundle
from service.policies import Networks
from service.session_state import Loaded, Session
from service.sessions import new_session_id
from service.wire import encode


def create(parts: Parts, wanted: schemas.OpenSession, key: str | None, caller: Caller) -> Loaded:
    """Open a session of the caller's; asked again with the same ``key``, the same one again. Raises UnknownBundle, IdempotencyKeyReused."""
    session = _new_session(wanted, find_bundle(parts, wanted.bundle or next(iter(parts.bundles))), caller.owner)
    if key is None:
        loaded = parts.store.create(session)
    else:
        session.session_id = parts.created.claim(key, encode(wanted), session.session_id)
        loaded = _create_once(parts, session)
    parts.metrics.sessions.inc()
    return loaded


def _create_once(parts: Parts, session: Session) -> Loaded:
    """The session of this id, made if it is not there: it may be, or its creator may have died before it made it."""
    try:
        return parts.store.load(session.session_id)
    except UnknownSession:
        parts.store.create(session)
        return parts.store.load(session.session_id)


def _new_session(wanted: schemas.OpenSession, networks: Networks, owner: str) -> Session:
    now = time.time()
    return Session(
        session_id=new_session_id(owner),
        bundle=networks.bundle.manifest.name,
        digest=networks.digest,
        seed=wanted.seed,
        conditioning_episodes=wanted.conditioning_episodes,
        exploration=wanted.exploration or networks.bundle.manifest.exploration,
        finetuning=wanted.finetuning,
        deterministic=wanted.deterministic,
        ttl_s=wanted.ttl_s,
        share_skills=wanted.share_skills,
        promotion=wanted.promotion,
        created_at=now,
        expires_at=now + wanted.ttl_s,
    )
