"""The page of workers and of what waits for them."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app import storage
from app.dashboard.pages import page
from app.jobs import queries
from app.jobs.states import Status
from app.tenancy import Tenant

router = APIRouter()
GONE = timedelta(days=1)
"""Housekeeping forgets a worker that was not heard from for so long."""


@router.get("/workers")
def all_workers(request: Request, tenant: Tenant, hx_request: Annotated[str | None, Header()] = None) -> Response:
    """The page; to HTMX, its numbers alone. Workers serve every tenant: what of another one they run is not told."""
    state = request.app.state
    with state.db.read() as session:
        now = state.db.now(session)
        workers = sorted(queries.workers_seen_since(session, now - GONE), key=lambda one: one.last_seen_at, reverse=True)
        names = queries.names(session, tenant, [one.job_id for one in workers if one.job_id is not None])
        jobs = queries.by_status(session, tenant)
        since = queries.waiting_since(session, tenant)
        stored = storage.stored(session, tenant)
    heard = [one for one in workers if one.last_seen_at >= now - timedelta(seconds=state.settings.worker_silent_s)]
    return page(
        "queues.html" if hx_request else "workers.html",
        jobs={status: jobs.get(status, 0) for status in Status},
        waited_s=(now - since).total_seconds() if since is not None else None,
        workers=workers,
        heard={one.id for one in heard},
        idle=sum(one.job_id is None for one in heard),
        names=names,
        silent_s=state.settings.worker_silent_s,
        stored=stored,
        most=state.settings.storage_bytes,
    )
