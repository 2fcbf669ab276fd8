"""Reads of jobs. The tenant is an argument of every one that a client can cause."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.jobs.states import Status
from app.jobs.table import Job, JobEvent, JobLabel, JobMetric, Worker


def by_id(session: Session, tenant_id: str, job_id: str) -> Job | None:
    return session.scalar(sa.select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id))


def version(session: Session, tenant_id: str, job_id: str) -> tuple[int, str] | None:
    """(version, status): all that a poller needs whose copy is up to date, at a fraction of the whole row's cost."""
    row = session.execute(sa.select(Job.version, Job.status).where(Job.tenant_id == tenant_id, Job.id == job_id)).one_or_none()
    return (row.version, row.status) if row else None


def by_idempotency_key(session: Session, tenant_id: str, key: str) -> Job | None:
    return session.scalar(sa.select(Job).where(Job.tenant_id == tenant_id, Job.idempotency_key == key))


def newest(
    session: Session, tenant_id: str, *, status: Sequence[Status], labels: dict[str, str], after: str | None, limit: int
) -> Sequence[Job]:
    """Newest first, by keyset: ids sort by time."""
    query = sa.select(Job).where(Job.tenant_id == tenant_id).order_by(Job.id.desc()).limit(limit)
    if status:
        query = query.where(Job.status.in_([str(one) for one in status]))
    if after is not None:
        query = query.where(Job.id < after)
    for key, value in labels.items():
        has = sa.select(JobLabel.job_id).where(JobLabel.tenant_id == tenant_id, JobLabel.key == key, JobLabel.value == value)
        query = query.where(Job.id.in_(has))
    return session.scalars(query).all()


def events_after(session: Session, tenant_id: str, job_id: str, *, after: int, limit: int) -> Sequence[JobEvent]:
    return session.scalars(
        sa.select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.tenant_id == tenant_id, JobEvent.seq > after)
        .order_by(JobEvent.seq)
        .limit(limit)
    ).all()


def metrics_after(
    session: Session, tenant_id: str, job_id: str, *, series: str | None, after: tuple[str, int] | None, limit: int
) -> Sequence[JobMetric]:
    query = sa.select(JobMetric).where(JobMetric.job_id == job_id, JobMetric.tenant_id == tenant_id)
    if series is not None:
        query = query.where(JobMetric.series == series)
    if after is not None:
        query = query.where(sa.tuple_(JobMetric.series, JobMetric.step) > after)
    return session.scalars(query.order_by(JobMetric.series, JobMetric.step).limit(limit)).all()


def artifacts_of(session: Session, tenant_id: str, job_id: str) -> Sequence[Artifact]:
    return session.scalars(
        sa.select(Artifact).where(Artifact.job_id == job_id, Artifact.tenant_id == tenant_id).order_by(Artifact.name)
    ).all()


def artifact(session: Session, tenant_id: str, job_id: str, name: str) -> Artifact | None:
    return session.scalar(
        sa.select(Artifact).where(Artifact.job_id == job_id, Artifact.tenant_id == tenant_id, Artifact.name == name)
    )


def queued(session: Session) -> int:
    return session.scalar(sa.select(sa.func.count()).where(Job.status == Status.QUEUED)) or 0


def by_status(session: Session) -> dict[str, int]:
    """How many jobs there are in each state that any is in."""
    return {status: number for status, number in session.execute(sa.select(Job.status, sa.func.count()).group_by(Job.status))}


def waiting_since(session: Session) -> datetime | None:
    """When the queued job that has waited longest began to wait: a queued row was last changed by what queued it, at first or
    again, while queued_at keeps its first place in the queue."""
    return session.scalar(sa.select(sa.func.min(Job.updated_at)).where(Job.status == Status.QUEUED))


def workers_seen_since(session: Session, since: datetime) -> Sequence[Worker]:
    return session.scalars(sa.select(Worker).where(Worker.last_seen_at >= since)).all()
