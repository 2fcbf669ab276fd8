"""The one task."""

from __future__ import annotations

import time

import structlog
from celery.worker import state

from app.broker import WAKE
from worker.celery_app import app, process
from worker.draining import drain

log = structlog.get_logger()


@app.task(name=WAKE)
def wake(job_id: str) -> None:
    """Which job the message names does not matter: the oldest queued one is next. So one that comes twice finds
    nothing to do, and one that is lost is made good by any other."""
    process.heard_at = time.monotonic()
    process.metrics.wake_ups_heard.inc()
    drain(process)
    if process.must_end is not None:
        log.error("the worker ends, to be started again", reason=process.must_end)
        state.should_stop = 1  # the exit code
