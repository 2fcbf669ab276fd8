"""Every change of a job's state: one compare-and-set each, with its event in the same transaction.

A worker's writes name the attempt that it claimed (the fencing token). A function returns None where the row was no
longer what it expected: the caller has lost the race and must leave the job alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app import storage
from app.artifacts.table import Artifact
from app.errors import Problem
from app.jobs import events, queue
from app.jobs.states import FOLLOWS, LEASED, RETRIED, TERMINAL, Status
from app.jobs.table import Job, JobMetric, MlflowExport

LONGEST_BACKOFF = timedelta(minutes=10)


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a job. waited: from when to when, by the database's clock."""

    job_id: str
    tenant_id: str
    attempt: int
    worker_id: str
    traceparent: str | None = None
    waited: tuple[datetime, datetime] | None = None


def _change(
    session: Session, job_id: str, before: Status | frozenset[Status], *where: Any, now: datetime, **values: Any
) -> Job | None:
    """Compare-and-set: the job as it is afterwards, or None if it was not in `before` or failed a condition."""
    expected = [before] if isinstance(before, Status) else sorted(before)
    if (after := values.get("status")) is not None and any(after not in FOLLOWS[status] for status in expected):
        raise AssertionError(f"no transition leads from {expected} to {after}")
    if after is not None and after not in LEASED:
        values = {"worker_id": None, "lease_expires_at": None, "phase": None, "not_before": None} | values
    if after in TERMINAL:
        values["finished_at"] = now
    return session.scalar(
        sa.update(Job)
        .where(Job.id == job_id, Job.status.in_(expected), *where)
        .values(version=Job.version + 1, updated_at=now, **values)
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )


def _held(claim: Claim) -> tuple[Any, Any]:
    return Job.attempt == claim.attempt, Job.worker_id == claim.worker_id


# A worker's side -----------------------------------------------------------------------------------------------------


def claim_next(session: Session, worker_id: str, *, lease: timedelta, now: datetime, takes_cuda: bool = True) -> Claim | None:
    """The job whose turn it is becomes this worker's. None: nothing is queued that it can run."""
    if (found := queue.next_job(session, now, takes_cuda)) is None:
        return None
    job_id, share, since = found
    job = _change(
        session,
        job_id,
        Status.QUEUED,
        now=now,
        status=Status.RUNNING,
        phase="preparing",
        attempt=Job.attempt + 1,
        worker_id=worker_id,
        lease_expires_at=now + lease,
        started_at=sa.func.coalesce(Job.started_at, sa.literal(now, Job.started_at.type)),
    )
    if job is None:
        return None
    queue.had_its_turn(session, share, now)
    events.append(
        session, job, "state", f"attempt {job.attempt} is running", {"status": job.status, "worker": worker_id}, now=now
    )
    return Claim(job.id, job.tenant_id, job.attempt, worker_id, job.traceparent, (since, now))


def renew(session: Session, claim: Claim, *, lease: timedelta, now: datetime) -> Status | None:
    """Extends the lease and says whether the job is to go on (running) or to stop (cancelling). None: the lease was lost.
    An expired lease that nobody has taken over yet may still be renewed: the attempt number decides, not the clock."""
    status = session.scalar(
        sa.update(Job)
        .where(Job.id == claim.job_id, Job.status.in_(sorted(LEASED)), *_held(claim))
        .values(lease_expires_at=now + lease)
        .returning(Job.status)
        .execution_options(synchronize_session=False)
    )
    return Status(status) if status else None


def held(session: Session, claim: Claim) -> Status | None:
    """What renew() would say, without extending the lease."""
    status = session.scalar(sa.select(Job.status).where(Job.id == claim.job_id, Job.status.in_(sorted(LEASED)), *_held(claim)))
    return Status(status) if status else None


def record(
    session: Session, claim: Claim, *, now: datetime, phase: str | None = None, progress: dict[str, Any] | None = None
) -> Job | None:
    """Progress of a running attempt."""
    values = ({"phase": phase} if phase else {}) | ({"progress": progress} if progress is not None else {})
    return _change(session, claim.job_id, LEASED, *_held(claim), now=now, **values)


def record_metrics(session: Session, claim: Claim, points: dict[tuple[str, int], float], *, now: datetime) -> None:
    """(series, step) -> value. A step that is done again after a resume replaces its value, and keeps its time. No point has a
    time that MLflow was told of already, though the clock was set back: by it is seen what is to be told."""
    if not points:
        return
    told_until = session.scalar(sa.select(MlflowExport.sent_until).where(MlflowExport.job_id == claim.job_id))
    if told_until is not None:
        now = max(now, told_until + timedelta(microseconds=1))
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(JobMetric)
    rows = [
        {"job_id": claim.job_id, "tenant_id": claim.tenant_id, "series": series, "step": step, "value": value, "at": now}
        for (series, step), value in sorted(points.items())
    ]
    upsert = insert.on_conflict_do_update(index_elements=["job_id", "series", "step"], set_={"value": insert.excluded.value})
    session.execute(upsert, rows)


def succeed(
    session: Session, claim: Claim, *, result: dict[str, Any], artifacts: list[dict[str, Any]], now: datetime
) -> Job | None:
    """Publication: the state, the result and every artifact row at once, under an unexpired lease, or nothing."""
    job = _change(
        session,
        claim.job_id,
        Status.RUNNING,
        *_held(claim),
        Job.lease_expires_at > now,
        now=now,
        status=Status.SUCCEEDED,
        result=result,
        progress=None,
    )
    if job is None:
        return None
    for artifact in artifacts:
        session.add(Artifact(job_id=job.id, tenant_id=job.tenant_id, attempt=claim.attempt, created_at=now, **artifact))
    storage.take(session, job.tenant_id, sum(artifact["size"] for artifact in artifacts))
    events.append(session, job, "state", "succeeded: the model is published", {"status": job.status}, now=now)
    return job


def fail(session: Session, claim: Claim, problem: dict[str, Any], *, now: datetime) -> Job | None:
    """A running attempt ends the job; a cancelled one ends it as cancelled, whatever went wrong while it stopped."""
    job = _change(session, claim.job_id, Status.RUNNING, *_held(claim), now=now, status=Status.FAILED, error=problem)
    if job is None:
        return finish_cancel(session, claim, now=now)
    message = f"failed: {problem['title']}: {problem['detail']}"
    events.append(session, job, "state", message, {"status": job.status, "code": problem["code"]}, now=now)
    return job


def finish_cancel(session: Session, claim: Claim, *, now: datetime) -> Job | None:
    job = _change(session, claim.job_id, Status.CANCELLING, *_held(claim), now=now, status=Status.CANCELLED)
    if job is not None:
        events.append(session, job, "state", "cancelled", {"status": job.status}, now=now)
    return job


def hand_back(session: Session, claim: Claim, *, now: datetime) -> Job | None:
    """The worker is told to go: another takes over from the checkpoint. Not counted as lost."""
    job = _change(session, claim.job_id, Status.RUNNING, *_held(claim), now=now, status=Status.QUEUED, queued_at=Job.queued_at)
    if job is None:
        return finish_cancel(session, claim, now=now)
    events.append(
        session, job, "state", f"attempt {claim.attempt} handed back: its worker stops", {"status": job.status}, now=now
    )
    return job


def lose(
    session: Session, claim: Claim, reason: str, *, most: int, backoff: timedelta, now: datetime, problem: Problem | None = None
) -> Job | None:
    """The attempt vanished without a word, or its machine could not bear it. Queued again, to be tried after `backoff`, after twice
    that the next time and so on up to ten minutes; or failed once `most` attempts were lost this way, with `problem` where it is
    known."""
    job = _lost(session, claim.job_id, *_held(claim), reason=reason, most=most, backoff=backoff, now=now, problem=problem)
    return job or finish_cancel(session, claim, now=now)


def _lost(
    session: Session,
    job_id: str,
    *where: Any,
    reason: str,
    most: int,
    backoff: timedelta,
    now: datetime,
    problem: Problem | None = None,
) -> Job | None:
    # It changes with the attempt alone, which `where` names.
    lost = session.scalar(sa.select(Job.lost_attempts).where(Job.id == job_id)) or 0
    delay = min(backoff * 2 ** min(lost, 10), max(backoff, LONGEST_BACKOFF))
    again = _change(
        session,
        job_id,
        Status.RUNNING,
        Job.lost_attempts + 1 < most,
        *where,
        now=now,
        status=Status.QUEUED,
        lost_attempts=Job.lost_attempts + 1,
        not_before=now + delay,
    )
    if again is not None:
        after = f" in {delay.total_seconds():g} s" if delay else ""
        message = f"attempt {again.attempt} was lost: {reason}; queued again to go on from the last checkpoint{after}"
        events.append(session, again, "state", message, {"status": again.status, "lost_attempts": again.lost_attempts}, now=now)
        return again
    words = f"{most} attempts were lost; the last one: {reason}"
    error = (problem or Problem("attempts_exhausted", words)).document()
    gone = _change(
        session, job_id, Status.RUNNING, *where, now=now, status=Status.FAILED, error=error, lost_attempts=Job.lost_attempts + 1
    )
    if gone is not None:
        data = {"status": gone.status, "code": error["code"], "lost_attempts": gone.lost_attempts}
        events.append(session, gone, "state", f"failed: {words}", data, now=now)
    return gone


# Housekeeping --------------------------------------------------------------------------------------------------------


def expire_leases(session: Session, *, most: int, backoff: timedelta, now: datetime) -> list[tuple[Job, str]]:
    """Jobs whose worker fell silent are queued again, failed or cancelled; each with that worker's id. Safe to run anywhere at once."""
    expired = session.execute(
        sa.select(Job.id, Job.attempt, Job.status, Job.worker_id)
        .where(Job.status.in_(sorted(LEASED)), Job.lease_expires_at < now)
        .limit(1000)
    ).all()
    changed = []
    for job_id, attempt, status, worker_id in expired:
        still = (Job.attempt == attempt, Job.lease_expires_at < now)
        if status == Status.CANCELLING:
            job = _change(session, job_id, Status.CANCELLING, *still, now=now, status=Status.CANCELLED)
            if job is not None:
                events.append(
                    session, job, "state", f"cancelled: worker {worker_id} fell silent", {"status": job.status}, now=now
                )
        else:
            job = _lost(session, job_id, *still, reason=f"worker {worker_id} fell silent", most=most, backoff=backoff, now=now)
        if job is not None:
            changed.append((job, worker_id))
    return changed


def forget(session: Session, statuses: frozenset[Status], *, before: datetime, most: int) -> dict[str, list[str]]:
    """Deletes the jobs that ended longest ago, before then, in one of these states: job id -> keys of its artifacts in the blob
    store. One that a client has tried again just now stays."""
    still = Job.status.in_(sorted(statuses)), Job.finished_at < before
    found = session.scalars(sa.select(Job.id).where(*still).order_by(Job.finished_at).limit(most)).all()
    artifacts: dict[str, list[Artifact]] = {job_id: [] for job_id in found}
    for artifact in session.scalars(sa.select(Artifact).where(Artifact.job_id.in_(found))):
        artifacts[artifact.job_id].append(artifact)
    deleted = session.scalars(sa.delete(Job).where(Job.id.in_(found), *still).returning(Job.id)).all()
    sizes = Counter[str]()
    for artifact in (one for job_id in deleted for one in artifacts[job_id]):
        sizes[artifact.tenant_id] += artifact.size
    for tenant_id, size in sorted(sizes.items()):  # in one order everywhere, so that two can't wait for each other
        storage.give_back(session, tenant_id, size)
    return {job_id: [artifact.blob_key for artifact in artifacts[job_id]] for job_id in deleted}


# A client's side -----------------------------------------------------------------------------------------------------


def cancel(session: Session, tenant_id: str, job_id: str, *, now: datetime) -> Job | None:
    """A queued job is cancelled at once, a running one asked to stop. None: neither (unknown, cancelling, or final)."""
    mine = Job.tenant_id == tenant_id
    # Held until the end: a worker that hands it back could else do so between the two questions, which would both find nothing.
    session.execute(sa.select(Job.id).where(Job.id == job_id, mine).with_for_update(key_share=True))
    job = _change(session, job_id, Status.QUEUED, mine, now=now, status=Status.CANCELLED)
    if job is not None:
        events.append(session, job, "state", "cancelled before it ran", {"status": job.status}, now=now)
        return job
    job = _change(session, job_id, Status.RUNNING, mine, now=now, status=Status.CANCELLING)
    if job is not None:
        events.append(session, job, "state", "asked to stop", {"status": job.status}, now=now)
    return job


def retry(session: Session, tenant_id: str, job_id: str, *, now: datetime) -> Job | None:
    """A failed or cancelled job is queued again, with its history, and with as many attempts to lose as a new one. None: neither."""
    job = _change(
        session,
        job_id,
        RETRIED,
        Job.tenant_id == tenant_id,
        now=now,
        status=Status.QUEUED,
        queued_at=now,
        share=sa.case((Job.share == "", Job.tenant_id), else_=Job.share),  # of a job from before there were shares
        needs_cuda=sa.func.coalesce(Job.request["device"].as_string() == "cuda", sa.false()),  # or from before workers differed
        finished_at=None,
        error=None,
        progress=None,
        lost_attempts=0,
    )
    if job is not None:
        events.append(session, job, "state", "queued again by a client", {"status": job.status}, now=now)
        # An export that is under way has read that the job is over.
        more = {"next_at": now, "claims": MlflowExport.claims + 1}
        session.execute(sa.update(MlflowExport).where(MlflowExport.job_id == job_id).values(more))
    return job
