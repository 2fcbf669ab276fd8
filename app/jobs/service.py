"""What a client can do with jobs. Each function is one transaction, committed when it returns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from opentelemetry import trace
from sqlalchemy.exc import IntegrityError

from app import storage, tracing
from app.blobs import Blobs, Staged, discard
from app.database import Database
from app.errors import Problem
from app.ids import new_id
from app.jobs import checkpoints, events, job_data, lifecycle, queries, queue
from app.jobs.job_data import Finder
from app.jobs.states import TERMINAL, Status
from app.jobs.table import FurtherSourceModel, Job, JobDataset, JobLabel
from app.problems import in_one_line
from app.remote import Pin
from app.settings import Settings
from app.source_models import queries as source_model_queries
from app.source_models import service as source_models
from app.spec import DATA_SETS, MOST_LABELS, DataSpec, JobRequest, SourceModelDescription, SourceModelId, misfit

Found = TypeVar("Found")
LONGEST_KEY = 255
"""Characters of an Idempotency-Key."""


def submit(
    db: Database,
    blobs: Blobs,
    settings: Settings,
    tenant_id: str,
    request: JobRequest,
    staged: Staged | None,
    key: str | None,
) -> tuple[Job, bool]:
    """The committed job, and whether it is new: the same Idempotency-Key with the same request gives the job it gave
    before. Everything that needs no torch is checked first. Raises Problem, BlobsAwayError."""
    digest = _digest(request, staged)
    if key is not None and (known := _submitted_before(db, tenant_id, key, digest)):
        return known, False
    storage.require(db, settings, tenant_id)
    in_one_line(request.name, "/name")
    for name, value in request.labels.items():
        in_one_line(value, f"/labels/{name}")
    _check_scaling_and_sides(request.data)
    by_id = isinstance(request.source_model, SourceModelId)
    if by_id and staged is not None:
        raise Problem("invalid_request", "both an id and a file: one source model too many", pointer="/source_model/id")
    if not by_id and staged is None:
        raise Problem(
            "missing_file", "no multipart part `source_model`, and the request names no stored one", pointer="/source_model"
        )
    if by_id:
        with db.read() as session:
            model = source_model_queries.by_id(session, tenant_id, request.source_model.id)
        if model is None:
            raise Problem("not_found", f"no source model {request.source_model.id!r}", pointer="/source_model/id")
        description = SourceModelDescription.model_validate(model.description)
    else:
        description = request.source_model
        source_models.require_units(description.input, "/source_model/input")
    _check_further(db, tenant_id, description, request.further_source_models)
    pins = job_data.check(Finder(db, blobs, settings, tenant_id), request.data, description.classes)
    if not by_id:
        model, _ = source_models.store(db, blobs, settings, tenant_id, request.source_model, staged)
        for place, further in enumerate(request.further_source_models):
            if further.id == model.id:
                pointer = f"/further_source_models/{place}/id"
                raise Problem("invalid_request", f"{model.id} is the very model that is sent along", pointer=pointer)
    accepted = request.model_copy(update={"source_model": SourceModelId(id=model.id)}).model_dump(mode="json")
    try:
        return _insert(db, settings, tenant_id, accepted, pins, digest, key), True
    except IntegrityError:
        # Either the same key won a race, or a source model or dataset was deleted a moment ago.
        if key is not None and (known := _submitted_before(db, tenant_id, key, digest)):
            return known, False
        raise Problem("not_found", "a source model or dataset was deleted meanwhile") from None


def _check_scaling_and_sides(data: DataSpec) -> None:
    """Of a new request alone: databases may hold others. Raises Problem invalid_request."""
    for name, reference in (("target", data.target), ("pairs", data.pairs)):
        scaling = reference.scaling if reference is not None else None
        if scaling is not None and scaling.kind in ("auto", "full_range") and (scaling.low, scaling.high) != (None, None):
            detail = f"kind {scaling.kind!r} heeds neither low nor high: set kind to 'range', or leave them out"
            raise Problem("invalid_request", detail, pointer=f"/data/{name}/scaling")
    if (pairs := data.pairs) is not None and pairs.layout not in DATA_SETS and pairs.source == pairs.target:
        detail = f"source and target are both {pairs.source!r}: a pair is an RGB image and another"
        raise Problem("invalid_request", detail, pointer="/data/pairs/target")


def _check_further(db: Database, tenant_id: str, first: SourceModelDescription, further: tuple[SourceModelId, ...]) -> None:
    """Raises Problem not_found, invalid_request."""
    for place, wanted in enumerate(further):
        pointer = f"/further_source_models/{place}"
        with db.read() as session:
            model = source_model_queries.by_id(session, tenant_id, wanted.id)
        if model is None:
            raise Problem("not_found", f"no source model {wanted.id!r}", pointer=f"{pointer}/id")
        if (why := misfit(first, SourceModelDescription.model_validate(model.description))) is not None:
            raise Problem("invalid_request", f"{wanted.id}: {why}", pointer=pointer)


def _insert(
    db: Database, settings: Settings, tenant_id: str, accepted: dict[str, Any], pins: list[Pin], digest: str, key: str | None
) -> Job:
    with db.write() as session:
        now = db.now(session)
        job = Job(
            id=new_id("job"),
            tenant_id=tenant_id,
            source_model_id=accepted["source_model"]["id"],
            name=accepted["name"],
            method=accepted["method"],
            request=accepted,
            pins=[pin.model_dump(mode="json") for pin in pins],
            idempotency_key=key,
            request_digest=digest,
            status=Status.QUEUED,
            share=queue.share_of(tenant_id, accepted["labels"], settings.queue_label),
            rank=-accepted["priority"],
            traceparent=tracing.traceparent(),
            needs_cuda=accepted["device"] == "cuda",
            created_at=now,
            queued_at=now,
            updated_at=now,
        )
        session.add(job)
        session.flush()
        session.add_all(
            FurtherSourceModel(job_id=job.id, place=place, source_model_id=further["id"])
            for place, further in enumerate(accepted["further_source_models"])
        )
        session.add_all(JobDataset(job_id=job.id, dataset_id=dataset_id) for dataset_id in job_data.dataset_ids(pins))
        session.add_all(JobLabel(job_id=job.id, tenant_id=tenant_id, key=k, value=v) for k, v in accepted["labels"].items())
        events.append(session, job, "state", "queued", {"status": Status.QUEUED}, now=now)
        if job.needs_cuda:
            heard = queries.workers_seen_since(session, now - timedelta(seconds=settings.worker_silent_s))
            if not any(worker.takes_cuda for worker in heard):
                message = "no worker with a CUDA device was heard from lately: the job waits for one"
                events.append(session, job, "warning", message, {"code": "no_cuda_worker", "message": message}, now=now)
    trace.get_current_span().set_attribute("modalbridge.job.id", job.id)
    return job


def _digest(request: JobRequest, staged: Staged | None) -> str:
    # What was sent: a default that another version has otherwise makes no other request of it.
    content = [request.model_dump(mode="json", exclude_unset=True), staged.sha256 if staged else None]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _submitted_before(db: Database, tenant_id: str, key: str, digest: str) -> Job | None:
    with db.read() as session:
        job = queries.by_idempotency_key(session, tenant_id, key)
    if job is not None and job.request_digest != digest:
        raise Problem("idempotency_conflict", f"key {key!r} already gave {job.id}, for another request", job_id=job.id)
    return job


def labels_of(parts: Sequence[str], pointer: str = "/label") -> dict[str, str]:
    """Labels from `key:value` each, such as one job can have. Raises Problem invalid_request."""
    labels: dict[str, str] = {}
    for part in parts:
        key, colon, value = part.partition(":")
        if not colon:
            raise Problem("invalid_request", f"label {part[:100]!r} is not `key:value`", pointer=pointer)
        if labels.setdefault(key, value) != value:
            detail = f"label {key[:100]!r} has two values, {labels[key][:100]!r} and {value[:100]!r}: a job has one"
            raise Problem("invalid_request", detail, pointer=pointer)
    if len(labels) > MOST_LABELS:
        raise Problem("invalid_request", f"{len(labels)} labels: a job has at most {MOST_LABELS}", pointer=pointer)
    return labels


def read(db: Database, tenant_id: str, job_id: str) -> Job:
    """Raises Problem not_found, whether it never was or is another tenant's."""
    with db.read() as session:
        return _found(queries.by_id(session, tenant_id, job_id), job_id)


def version(db: Database, tenant_id: str, job_id: str) -> tuple[int, str]:
    """(version, status) of a job. Raises Problem not_found."""
    with db.read() as session:
        return _found(queries.version(session, tenant_id, job_id), job_id)


def _found(found: Found | None, job_id: str) -> Found:
    if found is None:
        raise Problem("not_found", f"no job {job_id[:100]!r}")
    return found


def cancel(db: Database, tenant_id: str, job_id: str) -> Job:
    """Cancelled at once if queued; else asked to stop, and asking again changes nothing. Raises Problem job_finished."""
    with db.write() as session:
        if (job := lifecycle.cancel(session, tenant_id, job_id, now=db.now(session))) is not None:
            return job
        job = _found(queries.by_id(session, tenant_id, job_id), job_id)
    if job.status in TERMINAL:
        raise Problem("job_finished", f"{job.id} is {job.status}")
    return job


def retry(db: Database, tenant_id: str, job_id: str) -> Job:
    """A failed or cancelled job is queued again. Raises Problem not_found, not_retryable."""
    with db.write() as session:
        job = lifecycle.retry(session, tenant_id, job_id, now=db.now(session))
    if job is None:
        job = read(db, tenant_id, job_id)
        raise Problem("not_retryable", f"{job.id} is {job.status}")
    return job


def delete(db: Database, blobs: Blobs, tenant_id: str, job_id: str) -> None:
    """The job, its events, metrics and artifacts. Raises Problem not_found, job_active."""
    with db.write() as session:
        job = queries.by_id(session, tenant_id, job_id)
        if job is None:
            raise Problem("not_found", f"no job {job_id[:100]!r}")
        artifacts = queries.artifacts_of(session, tenant_id, job_id)
        over = sa.delete(Job).where(Job.id == job_id, Job.status.in_(sorted(TERMINAL)))
        if session.scalar(over.returning(Job.id)) is None:  # it is not over, was tried again just now, or another has deleted it
            job = read(db, tenant_id, job_id)
            raise Problem("job_active", f"{job.id} is {job.status}")
        storage.give_back(session, tenant_id, sum(artifact.size for artifact in artifacts))
    # After the commit: a crash in between leaves blobs that housekeeping finds, never rows without their blobs.
    discard(blobs, [artifact.blob_key for artifact in artifacts])
    checkpoints.remove(blobs, tenant_id, job_id)
