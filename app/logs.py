"""How log lines look: structlog's defaults, but for tracebacks; and with the trace that they belong to."""

from __future__ import annotations

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, WrappedLogger


def configure() -> None:
    """Tracebacks are Python's own. Where rich is installed, structlog's show the local variables of every frame instead: what
    clients sent ends up in the log, and drawing it has held up the event loop for half a minute."""
    *before, _ = (processor for processor in structlog.get_config()["processors"] if processor is not of_trace)
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, of_trace, plain])


def of_trace(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Adds trace_id and span_id while a span is active, in the form in which OpenTelemetry writes them."""
    if (context := trace.get_current_span().get_span_context()).is_valid:
        line["trace_id"], line["span_id"] = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return line
