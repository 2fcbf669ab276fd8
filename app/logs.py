"""How log lines look: structlog's defaults, but for tracebacks."""

from __future__ import annotations

import structlog


def configure() -> None:
    """Tracebacks are Python's own. Where rich is installed, structlog's show the local variables of every frame instead: what
    clients sent ends up in the log, and drawing it has held up the event loop for half a minute."""
    *before, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, plain])
