"""How log lines look: as text, or as JSON; each with the trace that it belongs to."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, WrappedLogger

from app.settings import Settings, doubts

JSON = [
    structlog.processors.TimeStamper("iso", utc=True),
    structlog.processors.format_exc_info,
    structlog.processors.JSONRenderer(),
]


def begin(settings: Settings) -> None:
    """Of a process that was started with these settings: its first lines say what of them will not do what it seems to."""
    configure(settings.log_format)
    for doubt in doubts(settings):
        structlog.get_logger().warning("a setting does not do what it seems to", why=doubt)


def configure(form: Literal["text", "json"] = "text") -> None:
    """Tracebacks are Python's own. Where rich is installed, structlog's show the local variables of every frame instead: what
    clients sent ends up in the log, and drawing it has held up the event loop for half a minute."""
    text = [
        structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback),
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.dev.set_exc_info,
            of_trace,
            *(JSON if form == "json" else text),
        ]
    )
    if form == "json":
        logging.basicConfig()
        logging.captureWarnings(capture=True)
        for name in (None, "uvicorn", "uvicorn.access"):
            as_json(logging.getLogger(name))


def as_json(logger: logging.Logger, **_: Any) -> None:
    """What a library says by its own logger, in the same form. A receiver of Celery's signals after_setup_logger and
    after_setup_task_logger too, whose other arguments are how Celery had set it up."""
    for handler in logger.handlers:
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *JSON],
                foreign_pre_chain=[structlog.stdlib.add_log_level, of_trace],
            )
        )


def of_trace(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Adds trace_id and span_id while a span is active, in the form in which OpenTelemetry writes them."""
    if (context := trace.get_current_span().get_span_context()).is_valid:
        line["trace_id"], line["span_id"] = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return line
