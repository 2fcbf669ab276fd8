"""OpenTelemetry traces: one for each job, from the request that submits it to the phases of its attempts.

Everything here speaks to OpenTelemetry's API, which does nothing until begin() gives it the SDK. A worker takes whichever job is
next and not the one that its message names, so a job's place in its trace is kept with the job's row, as a W3C `traceparent`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from app.settings import Telemetry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_S = 5.0
"""For the spans that wait to be sent when a process ends. A receiver that does not answer costs no more than this."""
READS = frozenset({"GET", "HEAD", "OPTIONS"})
tracer = trace.get_tracer("modalbridge")
_propagator = TraceContextTextMapPropagator()
_provider: TracerProvider | None = None


def begin(service_name: str, given: Telemetry) -> None:
    """Spans are sent from now on, if the environment names a receiver; in batches, by a thread beside. service_name: unless the
    environment has one. Raises RuntimeError, with what to do, where they cannot be."""
    global _provider
    if _provider is not None or not given.traces:
        return
    given.check()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RuntimeError(
            f"the environment asks for traces (OTEL_EXPORTER_OTLP_ENDPOINT), and what sends them is not installed ({error}): "
            "run `pip install -c constraints.txt '.[otel]'`, or unset it"
        ) from error
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service_name}))
    # Not at the interpreter's exit: a receiver that is away would hold that up for as much as half a minute.
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(_provider)


def end() -> None:
    """Sends what is left, within FLUSH_S."""
    if _provider is not None:
        sending = threading.Thread(target=_provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(FLUSH_S)


def untraced(scope: Scope) -> bool:
    """Of the front end's requests those that only read, unless the client traces them itself: a trace for each of the polls, which
    come by the hundred a second, would bury the others."""
    return scope["type"] != "http" or (
        scope["method"] in READS and all(name.lower() != b"traceparent" for name, _ in scope["headers"])
    )


def traceparent() -> str | None:
    """Of the span that is active, to be kept. None: there is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def context_of(kept: str | None) -> Context:
    """In which a span is a child of the kept one, whatever is active; where none was kept, the first of a trace."""
    return _propagator.extract({"traceparent": kept} if kept else {}, Context())


@contextmanager
def part(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: AttributeValue) -> Iterator[Span]:
    """A span within the active one; where none is, none. What is raised is not recorded: its words may be a client's."""
    if not trace.get_current_span().get_span_context().is_valid:
        yield trace.INVALID_SPAN
        return
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        yield span


def failed(span: Span, error_type: str) -> None:
    """error_type: an error code of ours, or the name of what was raised."""
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR, error_type))
