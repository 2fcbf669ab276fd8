"""The page of one job, and what can be done there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from app import broker
from app.conditional import matches
from app.dashboard import pictures, report, results
from app.dashboard.jobs import ADDRESS
from app.dashboard.pages import page
from app.jobs import queries, service
from app.jobs.schemas import JobView
from app.jobs.states import RETRIED, TERMINAL, Status
from app.jobs.table import Job, JobEvent
from app.tenancy import Tenant

router = APIRouter(prefix="/jobs/{job_id}")
PHASES = ("preparing", "bridging", "transferring", "evaluating", "publishing")
LINES = 300
"""Of the log, when the page comes."""
WARNINGS = 20
POINTS, SERIES = 1000, 40
"""Of the curves: at most so many points each, of so many."""


@router.get("")
def one_job(request: Request, job_id: str, tenant: Tenant) -> Response:
    state = request.app.state
    job = service.read(state.db, tenant, job_id)
    with state.db.read() as session:
        log = queries.events_after(session, tenant, job_id, after=max(0, job.last_event - LINES), limit=LINES)
        warnings = queries.events_of_kind(session, tenant, job_id, ["warning"], limit=WARNINGS)
        curves = queries.curves(session, tenant, job_id, points=POINTS, series=SERIES)
        artifacts = queries.artifacts_of(session, tenant, job_id)
        run_id = queries.mlflow_run(session, tenant, job_id)
    return page(
        "job.html",
        **_live(request, job),
        mlflow_run=run_address(state.settings.mlflow_ui_url, run_id),
        log=log,
        warnings=warnings,
        curves=curves,
        artifacts=artifacts,
        rows=results.rows(job.result),
        groups=results.GROUPS,
        reasons=[text for text in _list(job.result, "reasons") if isinstance(text, str)],
        pictures=pictures.of_job(state.blobs, artifacts, job.request.get("pictures")) if job.result is not None else None,
        kinds=pictures.KINDS,
        columns=pictures.COLUMNS,
        by_class=report.by_class(state.blobs, artifacts),
        accepted=json.dumps(job.request, indent=2, ensure_ascii=False),
        retryable=job.status in RETRIED,
    )


@router.get("/live")
def live(request: Request, job_id: str, tenant: Tenant) -> Response:
    """What changes while a job runs. Once it is over the whole page has changed, and HTMX is told to ask for that."""
    job = service.read(request.app.state.db, tenant, job_id)
    return page("live.html", headers={"HX-Refresh": "true"} if job.status in TERMINAL else None, **_live(request, job))


def run_address(base: str, run_id: str | None) -> str | None:
    """Of a run's page in MLflow. base: the operator's; what the tracking server calls the run is no more than the last part of it.

    >>> run_address("https://mlflow.example/", "0af7651916cd43dd8448eb211c80319c")
    'https://mlflow.example/#/runs/0af7651916cd43dd8448eb211c80319c'
    >>> run_address("https://mlflow.example", "../x?y#z")
    'https://mlflow.example/#/runs/..%2Fx%3Fy%23z'
    """
    return f"{base.rstrip('/')}/#/runs/{quote(run_id, safe='')}" if base and run_id else None


def _live(request: Request, job: Job) -> dict[str, Any]:
    with request.app.state.db.read() as session:
        began = queries.events_of_kind(session, job.tenant_id, job.id, ["phase"], limit=len(PHASES))
    return {
        "job": JobView.of(job),
        "active": job.status not in TERMINAL,
        "phases": phases(job, [event for event in began if event.attempt == job.attempt], datetime.now(UTC)),
    }


@dataclass(frozen=True)
class Phase:
    name: str
    state: str
    """done, now, stopped (the job ended in it) or to come."""
    seconds: float | None


def phases(job: Job, began: Sequence[JobEvent], now: datetime) -> list[Phase]:
    """How far the job's attempt is. began: its events of this kind. One that resumed does not enter again what was done."""
    at = {event.message: event.at for event in began}
    entered = [name for name in PHASES if name in at]
    last = entered[-1] if entered else None
    told = []
    for place, name in enumerate(PHASES):
        ends = [at[later] for later in PHASES[place + 1 :] if later in at]
        until = ends[0] if ends else job.finished_at or now
        if name == last and job.status != Status.SUCCEEDED:
            state = "stopped" if job.status in TERMINAL else "to come" if job.status == Status.QUEUED else "now"
        else:
            state = "done" if job.status == Status.SUCCEEDED or (last and place < PHASES.index(last)) else "to come"
        told.append(Phase(name, state, (until - at[name]).total_seconds() if name in at and state != "to come" else None))
    return told


@router.get("/curves")
def curves(request: Request, job_id: str, tenant: Tenant, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """JSON for the page's charts: `series`, each [steps, values]; `active`, whether there may be more."""
    db = request.app.state.db
    version, status = service.version(db, tenant, job_id)
    etag = f'"{version}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    with db.read() as session:
        found = queries.curves(session, tenant, job_id, points=POINTS, series=SERIES)
    series = {name: [[step for step, _ in points], [value for _, value in points]] for name, points in found.items()}
    return JSONResponse({"active": status not in TERMINAL, "series": series}, headers=headers)


@router.post("/cancel")
def cancel(request: Request, job_id: str, tenant: Tenant) -> Response:
    service.cancel(request.app.state.db, tenant, job_id)
    return _see(f"{ADDRESS}/{job_id}")


@router.post("/retry")
def retry(request: Request, job_id: str, tenant: Tenant) -> Response:
    job = service.retry(request.app.state.db, tenant, job_id)
    broker.wake(request.app.state.celery, job.id, job.needs_cuda)
    return _see(f"{ADDRESS}/{job_id}")


@router.post("/delete")
def delete(request: Request, job_id: str, tenant: Tenant) -> Response:
    service.delete(request.app.state.db, request.app.state.blobs, tenant, job_id)
    return _see(ADDRESS)


def _see(address: str) -> Response:
    return RedirectResponse(address, 303)


def _list(found: dict[str, Any] | None, name: str) -> list[Any]:
    value = (found or {}).get(name)
    return value if isinstance(value, list) else []
