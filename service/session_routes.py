"""The calls about sessions: open, read, list, close; their episodes, task, policy and fine-tuning."""

import asyncio
import math
import random
import time
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from service import schemas, views
from service.doors import caller_of
from service.idempotency import key_of
from service.openapi import documented
from service.opening import create
from service.parts import Parts, parts_of
from service.session_errors import ConcurrentUpdate
from service.session_state import Changes, Loaded
from service.step_loop import MAX_ATTEMPTS
from service.wire import intact, read, reply
from training.contract.exploration import Phase

MAX_WAIT_S: Final = 60.0
REQUEUE_S: Final = 1.0
"""Time between two times that one request which waits queues its session again."""

_QUICK_WAITS: Final = 4
"""So many requests may look as often as is set; more share these looks, since each look keeps the control loops waiting."""

_LONGEST_POLL_S, _LONGEST_SHARED_POLL_S = 0.5, 2.0

sessions = APIRouter(prefix="/v1/sessions", tags=["sessions"], default_response_class=Response)


@sessions.post(
    "", status_code=201, openapi_extra=documented(schemas.SessionView, request=schemas.OpenSession, status=201, example={"seed": 7})
)
async def open_session(request: Request) -> Response:
    """Open a session; all fields may be left out. With an ``Idempotency-Key``, sent again it opens no second one."""
    parts, wanted, key = parts_of(request), await read(request, schemas.OpenSession), key_of(request)
    loaded = create(parts, wanted, key, caller_of(request))
    return reply(views.session_view(loaded, parts.store.task_version(loaded.keys), networks=parts.loop.networks(loaded)), 201)


@sessions.get("", openapi_extra=documented(schemas.SessionList))
async def list_sessions(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 50, cursor: Annotated[str | None, Query()] = None
) -> Response:
    """List sessions, newest first: all, or those that the caller's token may see."""
    store, caller = parts_of(request).store, caller_of(request)
    found, next_cursor = store.page(limit, cursor or None, None if caller.sees_all else caller.owner)
    versions = store.task_versions([loaded.keys for loaded in found])
    page = [views.session_view(loaded, version) for loaded, version in zip(found, versions, strict=True)]
    return reply(schemas.SessionList(page, next_cursor))


@sessions.get("/{session_id}", openapi_extra=documented(schemas.SessionView))
async def read_session(request: Request, session_id: str) -> Response:
    """Read a session, with the specs of its bundle."""
    parts = parts_of(request)
    loaded = parts.store.load(session_id)
    return reply(views.session_view(loaded, parts.store.task_version(loaded.keys), networks=parts.loop.networks(loaded)))


@sessions.patch("/{session_id}", openapi_extra=documented(schemas.SessionView, request=schemas.ChangeSession, example={"phase": "adapted"}))
async def change_session(request: Request, session_id: str) -> Response:
    """Force a phase from the next episode on, or null for automatic."""
    parts, wanted = parts_of(request), await read(request, schemas.ChangeSession)
    loaded = await _force_phase(parts, session_id, wanted.phase)
    if not loaded.session.episode_open:
        parts.adaptation.queue_if_due(loaded)
    return reply(views.session_view(loaded, parts.store.task_version(loaded.keys)))


@sessions.delete("/{session_id}", openapi_extra=documented(schemas.SessionView))
async def close_session(request: Request, session_id: str) -> Response:
    """Close a session and remove everything of it."""
    await intact(request)
    parts = parts_of(request)
    version = parts.store.task_version(parts.store.load(session_id).keys)
    loaded = parts.store.close(session_id)
    parts.adaptation.forget(session_id)
    return reply(views.session_view(loaded, version, closed=True))


@sessions.post("/{session_id}/episodes", status_code=201, openapi_extra=documented(schemas.EpisodeStarted, status=201))
async def start_episode(request: Request, session_id: str) -> Response:
    """Start an episode; an open one is ended as truncated. With an ``Idempotency-Key``, sent again it starts no second one."""
    await intact(request)
    return reply(await parts_of(request).loop.start_episode(session_id, key_of(request)), 201)


@sessions.get("/{session_id}/task", openapi_extra=documented(schemas.TaskPosterior))
async def read_task(request: Request, session_id: str) -> Response:
    """The task posterior of all context so far, and the belief of a session that explores by one."""
    parts = parts_of(request)
    loaded = parts.store.load(session_id)
    networks = parts.loop.networks(loaded)
    belief = await parts.adaptation.belief(loaded, networks)
    return reply(views.task_view(loaded, await parts.adaptation.posterior(loaded, networks), belief))


@sessions.get("/{session_id}/policy", openapi_extra=documented(schemas.PolicyVersions))
async def read_policy(request: Request, session_id: str) -> Response:
    """The session's policy versions."""
    parts = parts_of(request)
    return _policy(parts, session_id)


@sessions.post(
    "/{session_id}/policy/approve", openapi_extra=documented(schemas.PolicyVersions, request=schemas.Approval, example={"version": 1})
)
async def approve(request: Request, session_id: str) -> Response:
    """Act with a candidate version from the next skill choice on."""
    parts, wanted = parts_of(request), await read(request, schemas.Approval)
    parts.versions.approve(parts.store.load(session_id).keys, wanted.version)
    return _policy(parts, session_id)


@sessions.post(
    "/{session_id}/policy/rollback", openapi_extra=documented(schemas.PolicyVersions, request=schemas.Rollback, example={"version": 0})
)
async def roll_back(request: Request, session_id: str) -> Response:
    """Go back to an earlier policy version from the next skill choice on, and pause fine-tuning."""
    parts, wanted = parts_of(request), await read(request, schemas.Rollback)
    loaded = parts.store.load(session_id)
    parts.versions.roll_back(loaded.keys, wanted.version, loaded.current_version, "a client asked for it")
    return _policy(parts, session_id)


def _policy(parts: Parts, session_id: str) -> Response:
    loaded = parts.store.load(session_id)
    return reply(views.policy_view(loaded, parts.versions.versions(loaded.keys), parts.versions.history(loaded.keys)))


@sessions.get("/{session_id}/finetuning", openapi_extra=documented(schemas.FinetuningStatus))
async def read_finetuning(request: Request, session_id: str, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0) -> Response:
    """Where fine-tuning stands; with wait_s, as soon as the learner has caught up."""
    parts, began, queued_at = parts_of(request), time.monotonic(), -math.inf
    while True:
        loaded = parts.store.load(session_id)
        progress = parts.versions.progress(loaded.keys)
        done, now = views.caught_up(loaded, progress), time.monotonic()
        if not done and progress.state in ("idle", "queued") and now - queued_at >= REQUEUE_S:
            parts.adaptation.queue_if_due(loaded)  # its job may have been lost, by a crash between two writes
            queued_at = now
        left_s = began + wait_s - now
        if done or left_s <= 0 or request.app.state.stopping:
            return reply(views.finetuning_view(loaded, progress))
        with parts.waiting, parts.learner_waits:
            await asyncio.sleep(min(left_s, pause_s(parts.settings.wait_poll_s, now - began, parts.learner_waits.count)))


def pause_s(poll_s: float, waited_s: float, waits: int) -> float:
    """How long a request that waits for a learner, one of ``waits``, waits until it looks again: longer the longer it has waited.

    At random around that, so that requests which came together do not look together.
    """
    shared_s = min(poll_s * waits / _QUICK_WAITS, _LONGEST_SHARED_POLL_S)
    patient_s = min(waited_s / 8, _LONGEST_POLL_S)
    return max(poll_s, random.uniform(0.5, 1.5) * max(shared_s, patient_s))


@sessions.patch(
    "/{session_id}/finetuning",
    openapi_extra=documented(schemas.FinetuningStatus, request=schemas.ChangeFinetuning, example={"paused": True}),
)
async def change_finetuning(request: Request, session_id: str) -> Response:
    """Pause or resume fine-tuning."""
    parts, wanted = parts_of(request), await read(request, schemas.ChangeFinetuning)
    loaded = parts.store.load(session_id)
    parts.versions.pause(loaded.keys, wanted.paused)
    if not wanted.paused:
        parts.adaptation.queue_if_due(loaded)
    return reply(views.finetuning_view(loaded, parts.versions.progress(loaded.keys)))


async def _force_phase(parts: Parts, session_id: str, phase: Phase | None) -> Loaded:
    for _ in range(MAX_ATTEMPTS):
        loaded = parts.store.load(session_id)
        loaded.session.forced_phase = phase
        if parts.store.save(loaded, Changes()):
            return loaded
        await asyncio.sleep(0)
    raise ConcurrentUpdate(f"other requests kept changing session {session_id}", action="Send the request again.")
