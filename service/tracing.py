"""OpenTelemetry by option (``SKILLET_TRACING``, extra ``tracing``): a span for each request, part of the client's trace if it sent one.

Off, nothing of OpenTelemetry is imported and no middleware is there. Where spans go is OpenTelemetry's own configuration
(``OTEL_EXPORTER_OTLP_ENDPOINT`` and the like); they leave in batches from a thread of their own.
"""

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import StartupError
from service.framing import request_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracing:
    """ASGI middleware that makes the spans; ``provider``: where they go (default: by OTLP over HTTP)."""

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app, self._tracer = app, provider.get_tracer("skillet")
        self._context = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on inside a span named by method and route."""
        from opentelemetry.trace import SpanKind, StatusCode

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"], "skillet.request_id": request_id(scope)}
        context = self._context.extract(carrier)
        with self._tracer.start_as_current_span(scope["method"], context, SpanKind.SERVER, attributes) as span:

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, note)
            if (route := getattr(scope.get("route"), "path", None)) is not None:
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)


def open_provider() -> "TracerProvider":
    """Spans leave by OTLP over HTTP. Raises StartupError when the extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError("SKILLET_TRACING needs OpenTelemetry: pip install 'skillet[tracing]', or unset it") from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "skillet"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
