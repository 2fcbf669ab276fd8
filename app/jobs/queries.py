"""Reads of jobs. The tenant is an argument of every one that a client can cause."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.jobs.states import Status
from app.jobs.table import Job, JobEvent, JobLabel, JobMetric, MlflowExport, Worker


def by_id(session: Session, tenant_id: str, job_id: str) -> Job | None:
    return session.scalar(sa.select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id))


def mlflow_run(session: Session, tenant_id: str, job_id: str) -> str | None:
    """The id of its run in MLflow, once there is one."""
    found = sa.select(MlflowExport.run_id).join(Job, Job.id == MlflowExport.job_id)
    return session.scalar(found.where(Job.tenant_id == tenant_id, Job.id == job_id))


def names(session: Session, tenant_id: str, job_ids: Collection[str]) -> dict[str, str | None]:
    """Id -> name, of those that are the tenant's."""
    found = sa.select(Job.id, Job.name).where(Job.tenant_id == tenant_id, Job.id.in_(job_ids))
    return {job_id: name for job_id, name in session.execute(found)}


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


def events_of_kind(session: Session, tenant_id: str, job_id: str, kinds: Sequence[str], *, limit: int) -> Sequence[JobEvent]:
    """The last of these kinds, oldest first."""
    newest_first = (
        sa.select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.tenant_id == tenant_id, JobEvent.kind.in_(kinds))
        .order_by(JobEvent.seq.desc())
        .limit(limit)
    )
    return session.scalars(newest_first).all()[::-1]


def metrics_after(
    session: Session, tenant_id: str, job_id: str, *, series: str | None, after: tuple[str, int] | None, limit: int
) -> Sequence[JobMetric]:
    query = sa.select(JobMetric).where(JobMetric.job_id == job_id, JobMetric.tenant_id == tenant_id)
    if series is not None:
        query = query.where(JobMetric.series == series)
    if after is not None:
        query = query.where(sa.tuple_(JobMetric.series, JobMetric.step) > after)
    return session.scalars(query.order_by(JobMetric.series, JobMetric.step).limit(limit)).all()


def curves(session: Session, tenant_id: str, job_id: str, *, points: int, series: int) -> dict[str, list[tuple[int, float]]]:
    """The first `series` series that have more than one point, of the evaluation apart, each as its (step, value) by step; of more
    than `points`, the lowest and the highest of each stretch of steps, and both ends: no spike is lost."""
    mine = sa.and_(JobMetric.job_id == job_id, JobMetric.tenant_id == tenant_id, JobMetric.series.not_like("evaluation/%"))
    ends = (
        sa.select(
            JobMetric.series,
            sa.func.min(JobMetric.step).label("low"),
            sa.func.max(JobMetric.step).label("high"),
            sa.func.count().label("number"),
        )
        .where(mine)
        .group_by(JobMetric.series)
        .having(sa.func.count() > 1)
        .order_by(JobMetric.series)
        .limit(series)
        .subquery()
    )
    # As floats: a step may be as large as a column holds. A cast rounds here and cuts there, so there may be one stretch more.
    low, high, step = (sa.cast(one, sa.Double) for one in (ends.c.low, ends.c.high, JobMetric.step))
    stretch = sa.cast((step - low) / (high - low) * (points // 2 - 2), sa.Integer)
    in_stretch = {"partition_by": (JobMetric.series, stretch)}
    ranked = (
        sa.select(
            JobMetric.series,
            JobMetric.step,
            JobMetric.value,
            sa.or_(ends.c.number <= points, JobMetric.step.in_([ends.c.low, ends.c.high])).label("kept"),
            sa.func.row_number().over(order_by=JobMetric.value, **in_stretch).label("from_below"),
            sa.func.row_number().over(order_by=JobMetric.value.desc(), **in_stretch).label("from_above"),
        )
        .join(ends, ends.c.series == JobMetric.series)
        .where(mine)
        .subquery()
    )
    query = (
        sa.select(ranked.c.series, ranked.c.step, ranked.c.value)
        .where(sa.or_(ranked.c.kept, ranked.c.from_below == 1, ranked.c.from_above == 1))
        .order_by(ranked.c.series, ranked.c.step)
    )
    found: dict[str, list[tuple[int, float]]] = {}
    for name, at, value in session.execute(query):
        found.setdefault(name, []).append((at, value))
    return found


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


def by_status(session: Session, tenant_id: str | None = None) -> dict[str, int]:
    """How many jobs there are in each state that any is in. None: of all tenants."""
    query = sa.select(Job.status, sa.func.count()).where(*_of(tenant_id)).group_by(Job.status)
    return {status: number for status, number in session.execute(query)}


def waiting_since(session: Session, tenant_id: str | None = None) -> datetime | None:
    """When the queued job that has waited longest began to wait: a queued row was last changed by what queued it, at first or
    again, while queued_at keeps its first place in the queue. None: of all tenants."""
    return session.scalar(sa.select(sa.func.min(Job.updated_at)).where(Job.status == Status.QUEUED, *_of(tenant_id)))


def _of(tenant_id: str | None) -> list[sa.ColumnElement[bool]]:
    return [] if tenant_id is None else [Job.tenant_id == tenant_id]


def workers_seen_since(session: Session, since: datetime) -> Sequence[Worker]:
    return session.scalars(sa.select(Worker).where(Worker.last_seen_at >= since)).all()
