"""Assembles the API: `create_app(settings)`."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import repeat
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from service import openapi
from service.access_log import AccessLog
from service.adaptation import Adaptation
from service.batch_routes import batches
from service.control_calls import ControlCalls
from service.control_routes import control
from service.deadlines import Deadlines
from service.doors import Doors, Doorway
from service.errors import StartupError
from service.framing import Framing
from service.gate import Gate, Waiting
from service.idempotency import CreatedSessions
from service.inference_protocol import inference
from service.jobs import JobQueue
from service.lane import Lane
from service.learner_metrics import LearnerMetrics
from service.limits import Bodies, SessionCap
from service.metrics import Metrics
from service.openpi import openpi
from service.operation_routes import bundles as bundle_routes
from service.operation_routes import operation
from service.parts import Parts
from service.policies import Networks
from service.reaper import ReaperMetrics
from service.session_routes import sessions
from service.sessions import SessionStore
from service.settings import Settings
from service.step_loop import StepLoop
from service.storage import connect, pool_of
from service.stream import streams
from service.token_routes import tokens as token_routes
from service.token_watch import TokenWatch
from service.tokens import KnownTokens, TokenStore
from service.tracing import Tracing, open_provider
from service.versions import VersionStore
from service.wire import answer_errors, problem
from training.contract.bundle import Bundle
from training.contract.signature import PublicKey

_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}  # asking whether it is on costs 0.01 ms a request
_DESCRIPTION = """Serves robot policies that adapt.

Open a session, start an episode, act, then step until the reply says that the episode is over."""


def create_app(settings: Settings, bundles: dict[str, Networks] | None = None) -> FastAPI:
    """The API for ``settings``, whose ``redis_url`` must be set. Loads the bundles unless they are given.

    Raises BundleError when a bundle cannot be used, StartupError when there is none.
    """
    if settings.redis_url is None:
        raise StartupError("the API needs a Redis: set SKILLET_REDIS_URL, or start it with 'python -m service', which brings one")
    parts, watch = _assemble(settings, settings.redis_url, bundles if bundles is not None else load_bundles(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch.start()
        yield
        watch.close()
        parts.adaptation.close()
        parts.store.redis.close()

    fewer_pages: dict[str, Any] = {"redoc_url": None, "swagger_ui_oauth2_redirect_url": None}
    app = FastAPI(title="Skillet", version="0.1.0", description=_DESCRIPTION, lifespan=lifespan, telemetry=_NO_TELEMETRY, **fewer_pages)
    app.state.parts = parts
    app.state.max_body_bytes = settings.max_body_bytes
    app.state.stopping = False  # set when the server begins to stop: waiting requests are then answered at once
    app.state.in_flight = lambda: 0  # the server says how many requests it has
    app.state.lane = None if settings.tracing or settings.access_log else Lane(app, parts)  # spans and lines are made by the application
    for router in (control, sessions, bundle_routes, operation, streams, batches, openpi, inference, token_routes):
        app.include_router(router)
    app.add_middleware(Doorway, doors=parts.doors, refuse=partial(problem, metrics=parts.metrics))
    answer_errors(app, parts.metrics)
    _add_middleware(app, settings, parts)
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: _stack(app, build)  # type: ignore[method-assign]
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    return app


def _stack(app: FastAPI, build: Callable[[], ASGIApp]) -> ASGIApp:
    """Framing around everything; then the middleware that was added; then the control loop's calls beside FastAPI's own stack."""
    added, app.user_middleware = app.user_middleware, []
    stack: ASGIApp = ControlCalls(build(), [*control.routes, *batches.routes], app.exception_handlers)
    for middleware, args, options in reversed(added):
        stack = middleware(stack, *args, **options)
    return Framing(stack)


def _add_middleware(app: FastAPI, settings: Settings, parts: Parts) -> None:
    """From the inside outwards. What is not asked for is not there."""
    app.add_middleware(Gate, limit=settings.max_in_flight, metrics=parts.metrics, waiting=parts.waiting)
    if settings.access_log:
        app.add_middleware(AccessLog)
    if settings.tracing:
        app.add_middleware(Tracing, provider=open_provider())


def load_bundles(settings: Settings, digests: Sequence[str] = ()) -> dict[str, Networks]:
    """Check and load the bundles by name; with ``digests``, in the order of the settings, each must have its own.

    Raises BundleError, KeyFileError, or StartupError for none, two of one name or another digest.
    """
    if not settings.bundles:
        raise StartupError("no bundle to serve: pass --bundle DIR, for example --bundle bundles/maze")
    found: dict[str, Networks] = {}
    keys = [PublicKey.read(file) for file in settings.bundle_keys]
    for path, digest in zip(settings.bundles, digests or repeat(None), strict=bool(digests)):
        bundle = Bundle.load(path, keys)
        if digest is not None and bundle.manifest.digest != digest:
            raise StartupError(
                f"the bundle at {path} is another than the service started with: its digest is {bundle.manifest.digest[:12]}, it was "
                f"{digest[:12]}; restart the service to serve what is there now, or put the old bundle back"
            )
        networks = Networks(bundle, envelope=settings.envelope)
        name = networks.bundle.manifest.name
        if name in found:
            raise StartupError(f"two bundles are named {name}: {found[name].bundle.path} and {path}; serve one of them")
        found[name] = networks
    return found


def _assemble(settings: Settings, redis_url: str, bundles: dict[str, Networks]) -> tuple[Parts, TokenWatch]:
    redis = connect(redis_url, settings.redis_timeout_s)
    store, versions, jobs, metrics = SessionStore(redis), VersionStore(redis), JobQueue(redis), Metrics()
    adaptation = Adaptation(store, versions, jobs, settings.inference_interval_s, metrics.rollbacks.inc)
    metrics.add(LearnerMetrics(versions, jobs), ReaperMetrics(redis))
    loop = StepLoop(settings, store=store, versions=versions, bundles=bundles, adaptation=adaptation, metrics=metrics)
    tokens = TokenStore(redis)
    known = KnownTokens(tokens)
    doors = Doors(settings, known)
    waiting = Waiting()
    parts = Parts(
        settings,
        bundles,
        store,
        versions,
        CreatedSessions(redis),
        adaptation,
        loop,
        Deadlines(),
        metrics,
        waiting,
        Bodies(waiting, settings.max_in_flight),
        tokens,
        doors,
        SessionCap(settings, store),
    )
    return parts, TokenWatch(known, connect(redis_url, settings.redis_timeout_s), pool_of(redis))
