"""Every endpoint: read, one call, reply."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute

from service import schemas, views
from service.adaptation import Adaptation
from service.errors import ConcurrentUpdate, StorageUnavailable, UnknownBundle
from service.metrics import Metrics
from service.openapi import documented
from service.policies import Networks
from service.sessions import Changes, Loaded, Session, SessionStore, new_session_id
from service.settings import Settings
from service.step_loop import MAX_ATTEMPTS, StepLoop
from service.versions import VersionStore
from service.wire import read, reply
from training.contract.exploration import Phase
from training.contract.spec import MANIFEST

MAX_WAIT_S: Final = 60.0
_TRANSITION_EXAMPLE = {
    "episode": 0,
    "step": 0,
    "reward": 0.0,
    "next_observation": [0.1, -0.2, 0.0, 0.3],
    "terminated": False,
    "truncated": False,
}


class DirectRoute(APIRoute):
    """A route of the control loop: FastAPI documents it, but its own decoding of arguments (0.1 ms) is left out."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Call the endpoint with the request and the session's id, nothing else."""

        async def handler(request: Request) -> Response:
            answer: Response = await self.endpoint(request, request.path_params["session_id"])
            return answer

        return handler


control = APIRouter(prefix="/v1/sessions", tags=["control loop"], default_response_class=Response, route_class=DirectRoute)
sessions = APIRouter(prefix="/v1/sessions", tags=["sessions"], default_response_class=Response)
bundles = APIRouter(prefix="/v1/bundles", tags=["bundles"], default_response_class=Response)
operation = APIRouter(tags=["operation"], default_response_class=Response)


@dataclass(frozen=True)
class Parts:
    """What the endpoints call."""

    settings: Settings
    bundles: dict[str, Networks]
    store: SessionStore
    versions: VersionStore
    adaptation: Adaptation
    loop: StepLoop
    metrics: Metrics


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


@control.post("/{session_id}/step", openapi_extra=documented(schemas.Action, request=schemas.Transition, example=_TRANSITION_EXAMPLE))
async def step(request: Request, session_id: str) -> Response:
    """Store the outcome of a step and give the next action."""
    started, parts = time.perf_counter(), _parts(request)
    answer = await parts.loop.step(session_id, await read(request, schemas.Transition))
    parts.metrics.step_seconds.observe(time.perf_counter() - started)
    return reply(answer)


@control.post(
    "/{session_id}/act",
    openapi_extra=documented(
        schemas.Action, request=schemas.Act, example={"episode": 0, "step": 0, "observation": _TRANSITION_EXAMPLE["next_observation"]}
    ),
)
async def act(request: Request, session_id: str) -> Response:
    """Give the action for one step."""
    started, parts = time.perf_counter(), _parts(request)
    answer = await parts.loop.act(session_id, await read(request, schemas.Act))
    parts.metrics.act_seconds.observe(time.perf_counter() - started)
    return reply(answer)


@control.post(
    "/{session_id}/transitions",
    openapi_extra=documented(schemas.TransitionsPosted, request=schemas.PostTransitions, example={"transitions": [_TRANSITION_EXAMPLE]}),
)
async def post_transitions(request: Request, session_id: str) -> Response:
    """Store the outcomes of acted steps."""
    started, parts = time.perf_counter(), _parts(request)
    answer = await parts.loop.add_transitions(session_id, await read(request, schemas.PostTransitions))
    parts.metrics.transitions_seconds.observe(time.perf_counter() - started)
    return reply(answer)


@sessions.post(
    "", status_code=201, openapi_extra=documented(schemas.SessionView, request=schemas.OpenSession, status=201, example={"seed": 7})
)
async def open_session(request: Request) -> Response:
    """Open a session; all fields may be left out."""
    parts, wanted, now = _parts(request), await read(request, schemas.OpenSession), time.time()
    networks = _bundle(parts, wanted.bundle or next(iter(parts.bundles)))
    session = Session(
        session_id=new_session_id(),
        bundle=networks.bundle.manifest.name,
        digest=networks.digest,
        seed=wanted.seed,
        conditioning_episodes=wanted.conditioning_episodes,
        exploration=wanted.exploration,
        finetuning=wanted.finetuning,
        deterministic=wanted.deterministic,
        ttl_s=wanted.ttl_s,
        created_at=now,
        expires_at=now + wanted.ttl_s,
    )
    loaded = parts.store.create(session)
    parts.metrics.sessions.inc()
    return reply(views.session_view(loaded, 0, specs=networks.spec), 201)


@sessions.get("", openapi_extra=documented(schemas.SessionList))
async def list_sessions(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 50, cursor: Annotated[str | None, Query()] = None
) -> Response:
    """List sessions, newest first."""
    store = _parts(request).store
    found, next_cursor = store.page(limit, cursor)
    versions = store.task_versions([loaded.keys for loaded in found])
    page = [views.session_view(loaded, version) for loaded, version in zip(found, versions, strict=True)]
    return reply(schemas.SessionList(page, next_cursor))


@sessions.get("/{session_id}", openapi_extra=documented(schemas.SessionView))
async def read_session(request: Request, session_id: str) -> Response:
    """Read a session, with the specs of its bundle."""
    parts = _parts(request)
    loaded = parts.store.load(session_id)
    return reply(views.session_view(loaded, parts.store.task_version(loaded.keys), specs=parts.loop.networks(loaded).spec))


@sessions.patch("/{session_id}", openapi_extra=documented(schemas.SessionView, request=schemas.ChangeSession, example={"phase": "adapted"}))
async def change_session(request: Request, session_id: str) -> Response:
    """Force a phase from the next episode on, or null for automatic."""
    parts, wanted = _parts(request), await read(request, schemas.ChangeSession)
    loaded = await _force_phase(parts, session_id, wanted.phase)
    if not loaded.session.episode_open:
        parts.adaptation.queue_if_due(loaded)
    return reply(views.session_view(loaded, parts.store.task_version(loaded.keys)))


@sessions.delete("/{session_id}", openapi_extra=documented(schemas.SessionView))
async def close_session(request: Request, session_id: str) -> Response:
    """Close a session and remove everything of it."""
    parts = _parts(request)
    version = parts.store.task_version(parts.store.load(session_id).keys)
    loaded = parts.store.close(session_id)
    parts.adaptation.forget(session_id)
    return reply(views.session_view(loaded, version, closed=True))


@sessions.post("/{session_id}/episodes", status_code=201, openapi_extra=documented(schemas.EpisodeStarted, status=201))
async def start_episode(request: Request, session_id: str) -> Response:
    """Start an episode; an open one is ended as truncated."""
    return reply(await _parts(request).loop.start_episode(session_id), 201)


@sessions.get("/{session_id}/task", openapi_extra=documented(schemas.TaskPosterior))
async def read_task(request: Request, session_id: str) -> Response:
    """The task posterior of all context so far."""
    parts = _parts(request)
    loaded = parts.store.load(session_id)
    return reply(views.task_view(loaded, await parts.adaptation.posterior(loaded, parts.loop.networks(loaded))))


@sessions.get("/{session_id}/policy", openapi_extra=documented(schemas.PolicyVersions))
async def read_policy(request: Request, session_id: str) -> Response:
    """The session's policy versions."""
    parts = _parts(request)
    loaded = parts.store.load(session_id)
    return reply(views.policy_view(loaded, parts.versions.versions(loaded.keys)))


@sessions.post(
    "/{session_id}/policy/rollback", openapi_extra=documented(schemas.PolicyVersions, request=schemas.Rollback, example={"version": 0})
)
async def roll_back(request: Request, session_id: str) -> Response:
    """Go back to an earlier policy version from the next skill choice on, and pause fine-tuning."""
    parts, wanted = _parts(request), await read(request, schemas.Rollback)
    loaded = parts.store.load(session_id)
    parts.versions.roll_back(loaded.keys, wanted.version, loaded.current_version)
    loaded = parts.store.load(session_id)
    return reply(views.policy_view(loaded, parts.versions.versions(loaded.keys)))


@sessions.get("/{session_id}/finetuning", openapi_extra=documented(schemas.FinetuningStatus))
async def read_finetuning(request: Request, session_id: str, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0) -> Response:
    """Where fine-tuning stands; with wait_s, as soon as the learner has caught up."""
    parts, deadline = _parts(request), time.monotonic() + wait_s
    while True:
        loaded = parts.store.load(session_id)
        progress = parts.versions.progress(loaded.keys)
        done = views.caught_up(loaded, progress)
        if not done and progress.state in ("idle", "queued"):
            parts.adaptation.queue_if_due(loaded)  # its job may have been lost, by a crash between two writes
        if done or time.monotonic() >= deadline or request.app.state.stopping:
            return reply(views.finetuning_view(loaded, progress))
        await asyncio.sleep(parts.settings.wait_poll_s)


@sessions.patch(
    "/{session_id}/finetuning",
    openapi_extra=documented(schemas.FinetuningStatus, request=schemas.ChangeFinetuning, example={"paused": True}),
)
async def change_finetuning(request: Request, session_id: str) -> Response:
    """Pause or resume fine-tuning."""
    parts, wanted = _parts(request), await read(request, schemas.ChangeFinetuning)
    loaded = parts.store.load(session_id)
    parts.versions.pause(loaded.keys, wanted.paused)
    if not wanted.paused:
        parts.adaptation.queue_if_due(loaded)
    return reply(views.finetuning_view(loaded, parts.versions.progress(loaded.keys)))


@bundles.get("", openapi_extra=documented(schemas.BundleList))
async def list_bundles(request: Request) -> Response:
    """The bundles that are served."""
    served = _parts(request).bundles
    return reply(schemas.BundleList([schemas.BundleSummary(name, found.digest, found.spec.env_id) for name, found in served.items()]))


@bundles.get("/{name}", openapi_extra=documented(dict))
async def read_bundle(request: Request, name: str) -> Response:
    """A bundle's manifest, without golden vectors."""
    return reply(views.bundle_view(_bundle(_parts(request), name)))


@bundles.get("/{name}/{file}", responses={200: {"content": {"application/octet-stream": {}}}})
async def read_bundle_file(request: Request, name: str, file: str) -> Response:
    """One file of a bundle; its ETag is its SHA-256."""
    bundle = _bundle(_parts(request), name).bundle
    entry = bundle.manifest.files.get(file)
    if file == MANIFEST:
        return reply(bundle.manifest.model_dump(mode="json"))
    if entry is None:
        raise UnknownBundle(
            f"bundle {name} has no file {file}"[:200], expected=sorted(bundle.manifest.files), action="Name one of these files."
        )
    etag = f'"{entry.sha256}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"etag": etag})
    data = await asyncio.to_thread(bundle.read, file)
    return Response(data, media_type="application/octet-stream", headers={"etag": etag})


@operation.get("/livez")
async def livez() -> Response:
    """The process runs."""
    return reply({"status": "ok"})


@operation.get("/readyz")
async def readyz(request: Request) -> Response:
    """Redis answers and the bundles are loaded: requests can be served."""
    parts = _parts(request)
    if not parts.store.redis.ping():
        raise StorageUnavailable("Redis does not answer a ping", action="See to Redis.")
    return reply({"status": "ok", "bundles": {name: found.digest for name, found in parts.bundles.items()}})


@operation.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(_parts(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _bundle(parts: Parts, name: str) -> Networks:
    if (found := parts.bundles.get(name)) is None:
        raise UnknownBundle(
            "this service has no bundle of that name",
            expected=sorted(parts.bundles),
            received=name[:64],
            action="Name one of these bundles.",
        )
    return found


async def _force_phase(parts: Parts, session_id: str, phase: Phase | None) -> Loaded:
    for _ in range(MAX_ATTEMPTS):
        loaded = parts.store.load(session_id)
        loaded.session.forced_phase = phase
        if parts.store.save(loaded, Changes()):
            return loaded
        await asyncio.sleep(0)
    raise ConcurrentUpdate(f"other requests kept changing session {session_id}", action="Send the request again.")
