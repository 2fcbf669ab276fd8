"""The jobs' HTTP face."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import format_sse_event

from app import broker, threads, uploads
from app.conditional import matches
from app.database import Database
from app.errors import Problem
from app.jobs import queries, service
from app.jobs.schemas import EventView, JobView, MetricPoint
from app.jobs.states import TERMINAL, Status
from app.jobs.table import Job
from app.pagination import Limit, Page, id_cursor, number_cursor, page_by_id
from app.problems import documented, parse
from app.spec import JobRequest
from app.tenancy import Tenant

router = APIRouter(prefix="/jobs", tags=["jobs"])
POLL_S = 0.25
"""How often a held answer or a stream looks at the database."""

_EXAMPLE = {
    "name": "hall 3, depth cameras",
    "labels": {"team": "robots"},
    "source_model": {"id": "model_01kb3x5tqyd0h6v3k1m9w2r8ab"},
    "data": {
        "target": {"uri": "file:///data/hall3/depth", "layout": "folder", "modality": "depth"},
        "pairs": {"uri": "file:///data/lobby", "layout": "pairs", "source": "rgb", "target": "depth"},
        "evaluation": {"uri": "file:///data/hall3/labelled", "layout": "folder"},
    },
    "method": "tgmb_tgkt",
    "settings": {"transfer": {"epochs": 15}, "weights": {"kl": 1.0}},
    "seed": 0,
}
_EXAMPLE_WITH_FILE = _EXAMPLE | {
    "source_model": {"architecture": "torchvision/resnet18", "classes": ["box", "mug"], "input": {"size": 64}}
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobRequest"},
                "examples": {"stored source model": {"value": _EXAMPLE}},
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["request"],
                    "properties": {
                        "request": {"$ref": "#/components/schemas/JobRequest"},
                        "source_model": {
                            "type": "string",
                            "format": "binary",
                            "description": "safetensors or a torch state_dict",
                        },
                    },
                },
                "encoding": {"request": {"contentType": "application/json"}},
                "examples": {"source model sent along": {"value": {"request": _EXAMPLE_WITH_FILE}}},
            },
        },
    }
}


def _answer(job: Job, status_code: int = 200, **headers: str) -> Response:
    headers["ETag"] = _tag(job.version)
    if job.status not in TERMINAL:
        headers["Retry-After"] = "1" if job.status != Status.QUEUED else "2"
    return JSONResponse(JobView.of(job).model_dump(mode="json"), status_code, headers=headers)


def _tag(version: int) -> str:
    return f'"{version}"'


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    openapi_extra=_BODY,
    summary="Submit a job",
    responses={202: {"description": "Accepted and committed: it will not be lost.", "headers": {"Location": {"schema": {"type": "string"}}}}}
    | documented(
        "invalid_request", "unknown_field", "missing_file", "malformed_json", "malformed_multipart", "unsupported_media_type",
        "payload_too_large", "empty_file", "unsafe_pickle", "archive_bomb", "source_model_format", "source_model_truncated",
        "reference_scheme", "reference_outside_roots", "reference_missing", "layout_mismatch", "no_images", "too_few_images",
        "reference_unreadable", "reference_forbidden", "reference_too_large", "reference_away", "archive_unsafe", "pairs_unmatched", "unknown_class", "idempotency_conflict", "not_found", "storage_full", "quota_exceeded",
        "blobs_unavailable",
    ),
)  # fmt: skip
async def submit(
    request: Request,
    tenant: Tenant,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=service.LONGEST_KEY, description="The same key gives the same job.")
    ] = None,
) -> Response:
    """JSON that names a stored source model, or multipart with a `request` part (the same JSON) and a `source_model` file."""
    state = request.app.state
    received = await uploads.receive(
        request, texts=["request"], json_part="request", file_part="source_model", blobs=state.blobs, settings=state.settings
    )
    with received:
        if "request" not in received.texts:
            raise Problem("malformed_multipart", "the part `request` is missing")
        wanted = await run_in_threadpool(parse, JobRequest, received.texts["request"])
        job, new = await threads.check(
            request, service.submit, state.db, state.blobs, state.settings, tenant, wanted, received.staged, idempotency_key
        )
    if new:  # after the commit; if the broker is down, housekeeping wakes a worker instead
        await run_in_threadpool(broker.wake, state.celery, job.id, job.needs_cuda)
    return _answer(job, 202, Location=f"/jobs/{job.id}")


@router.get("", response_model=Page[JobView], summary="List jobs, newest first", responses=documented("invalid_cursor"))
def list_jobs(
    request: Request,
    tenant: Tenant,
    status: Annotated[list[Status] | None, Query(description="Any of these.")] = None,
    label: Annotated[list[str] | None, Query(description="`key:value`; all of them.", examples=["team:robots"])] = None,
    limit: Limit = 50,
    after: Annotated[str | None, Query(description="`next` of the previous page.")] = None,
) -> Any:
    labels = service.labels_of(label or [])
    with request.app.state.db.read() as session:
        jobs = queries.newest(session, tenant, status=status or [], labels=labels, after=id_cursor(after, "job"), limit=limit + 1)
    return page_by_id(jobs, limit, JobView.of)


@router.get(
    "/{job_id}",
    response_model=JobView,
    summary="Poll a job",
    responses={304: {"description": "Nothing has changed since the ETag in If-None-Match."}} | documented("not_found"),
)
async def get_job(
    request: Request,
    job_id: str,
    tenant: Tenant,
    wait: Annotated[float, Query(ge=0, description="Hold the answer up to this many seconds until the job changes.")] = 0,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """`ETag` and 304 make polling cheap; `Retry-After` says when to look again. With `?wait=30` the answer is held until
    the job differs from the ETag in If-None-Match, or, without one, from what it is now."""
    db: Database = request.app.state.db
    if not wait and if_none_match is None:
        return _answer(await run_in_threadpool(service.read, db, tenant, job_id))
    number, status = await run_in_threadpool(service.version, db, tenant, job_id)
    seen = if_none_match or _tag(number)
    deadline = time.monotonic() + min(wait, request.app.state.settings.wait_limit_s)
    while wait and status not in TERMINAL and matches(seen, _tag(number)) and time.monotonic() < deadline:
        if await request.is_disconnected():
            break
        await asyncio.sleep(POLL_S)
        number, status = await run_in_threadpool(service.version, db, tenant, job_id)
    if matches(if_none_match, _tag(number)):
        headers = {"ETag": _tag(number)} | ({"Retry-After": "1"} if status not in TERMINAL else {})
        return Response(status_code=304, headers=headers)
    return _answer(await run_in_threadpool(service.read, db, tenant, job_id))


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    response_model=JobView,
    summary="Cancel a job",
    responses=documented("not_found", "job_finished"),
)
def cancel(request: Request, job_id: str, tenant: Tenant) -> Response:
    """A queued job is cancelled at once; a running one is asked to stop (`cancelling`) and killed if it does not."""
    return _answer(service.cancel(request.app.state.db, tenant, job_id), 202)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobView,
    summary="Try a failed or cancelled job again",
    responses=documented("not_found", "not_retryable"),
)
def retry(request: Request, job_id: str, tenant: Tenant) -> Response:
    """The same job, request and history, with a new attempt that goes on from the last checkpoint where one is left."""
    job = service.retry(request.app.state.db, tenant, job_id)
    broker.wake(request.app.state.celery, job.id, job.needs_cuda)
    return _answer(job, 202)


@router.delete(
    "/{job_id}", status_code=204, summary="Delete a job and its artifacts", responses=documented("not_found", "job_active")
)
def delete(request: Request, job_id: str, tenant: Tenant) -> Response:
    service.delete(request.app.state.db, request.app.state.blobs, tenant, job_id)
    return Response(status_code=204)


@router.get(
    "/{job_id}/events",
    response_model=Page[EventView],
    summary="Read or stream a job's events",
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
    | documented("not_found", "invalid_cursor"),
)
async def events(
    request: Request,
    job_id: str,
    tenant: Tenant,
    after: Annotated[str | None, Query(description="`next` of the previous page, or the seq of the last event seen.")] = None,
    limit: Limit = 100,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """State changes, warnings and log lines, oldest first. With `Accept: text/event-stream` they are streamed as they
    come until the job is final; a broken stream goes on from `Last-Event-ID`."""
    db: Database = request.app.state.db
    await run_in_threadpool(service.read, db, tenant, job_id)
    if "text/event-stream" in accept:
        start = number_cursor(last_event_id if last_event_id is not None else after)
        stream = _stream(request, tenant, job_id, start, request.app.state.settings.stream_limit_s)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
    found = await run_in_threadpool(_events, db, tenant, job_id, number_cursor(after), limit)
    return Page(data=found, next=str(found[-1].seq) if len(found) == limit else None)


def _events(db: Database, tenant: str, job_id: str, after: int, limit: int) -> list[EventView]:
    with db.read() as session:
        rows = queries.events_after(session, tenant, job_id, after=after, limit=limit)
    return [EventView.model_validate(row) for row in rows]


async def _stream(request: Request, tenant: str, job_id: str, after: int, life_s: float) -> AsyncIterator[bytes]:
    """Holds no database session while it waits; ends when the job is final or its life is over."""
    db: Database = request.app.state.db
    until, quiet_since = time.monotonic() + life_s, time.monotonic()
    yield format_sse_event(retry=1000)
    while time.monotonic() < until:
        try:
            job = await run_in_threadpool(service.read, db, tenant, job_id)  # before its events: none can follow a final state
        except Problem:
            return  # deleted meanwhile
        found = await run_in_threadpool(_events, db, tenant, job_id, after, 200)
        for event in found:
            after = event.seq
            yield format_sse_event(data_str=event.model_dump_json(), event=event.kind, id=str(event.seq))
        if found:
            quiet_since = time.monotonic()
            continue
        if job.status in TERMINAL:
            return
        if time.monotonic() - quiet_since > 15:
            quiet_since = time.monotonic()
            yield format_sse_event(comment="still here")
        await asyncio.sleep(POLL_S)


@router.get(
    "/{job_id}/metrics",
    response_model=Page[MetricPoint],
    summary="Loss and evaluation series",
    responses=documented("not_found", "invalid_cursor"),
)
def metrics(
    request: Request,
    job_id: str,
    tenant: Tenant,
    series: Annotated[str | None, Query(description="This one alone.", examples=["bridging/L_rec"])] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    after: str | None = None,
) -> Any:
    """Points by series, then step."""
    db: Database = request.app.state.db
    service.read(db, tenant, job_id)
    cursor = None
    if after is not None:
        name, _, step = after.rpartition(":")
        if not name or not step.isascii() or not step.isdigit() or len(step) > 15:
            raise Problem("invalid_cursor", f"{after[:100]!r} was never a `next` of this list")
        cursor = (name, int(step))
    with db.read() as session:
        rows = queries.metrics_after(session, tenant, job_id, series=series, after=cursor, limit=limit + 1)
    points = [MetricPoint.model_validate(row) for row in rows[:limit]]
    return Page(data=points, next=f"{points[-1].series}:{points[-1].step}" if len(rows) > limit else None)
