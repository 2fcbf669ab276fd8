"""Jobs, their attempts, labels, events and metric points, and the workers that have been heard from."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.database import JSON, Base, Timestamp
from app.jobs.states import Status


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
        sa.CheckConstraint(f"status in ({', '.join(repr(str(status)) for status in Status)})", name="status"),
        sa.CheckConstraint("(status in ('running', 'cancelling')) = (lease_expires_at is not null)", name="lease"),
        sa.Index("ix_jobs_list", "tenant_id", "id"),
        sa.Index("ix_jobs_list_by_status", "tenant_id", "status", "id"),
        sa.Index("ix_jobs_claim", "status", "needs_cuda", "queued_at", "id"),
        sa.Index("ix_jobs_turns", "status", "share", "rank", "queued_at", "id"),
        # Of a worker without a CUDA device: for it the first by the other one may be behind any number that are not for it.
        sa.Index("ix_jobs_turns_by_device", "status", "share", "needs_cuda", "rank", "queued_at", "id"),
        sa.Index("ix_jobs_source_model", "source_model_id"),
    )

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    source_model_id: Mapped[str] = mapped_column(sa.ForeignKey("source_models.id"))
    name: Mapped[str | None] = mapped_column(sa.String(200))
    method: Mapped[str] = mapped_column(sa.String(40))
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    """As accepted: every default filled in, the source model by its id."""
    pins: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    """app.remote.Pin for each place beyond the disk that its references lead to."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str] = mapped_column(sa.String(64))

    status: Mapped[str] = mapped_column(sa.String(20))
    phase: Mapped[str | None] = mapped_column(sa.String(20))
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)

    share: Mapped[str] = mapped_column(sa.String(300), default="", server_default="")
    """Of the queue: shares take turns (app/jobs/queue.py)."""
    rank: Mapped[int] = mapped_column(default=0, server_default="0")
    """Minus the priority of the request: what is smaller goes first."""
    needs_cuda: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """Only a worker with a CUDA device may claim it."""

    attempt: Mapped[int] = mapped_column(default=0)
    """The fencing token: raised by each claim, and every write of a worker names it."""
    lost_attempts: Mapped[int] = mapped_column(default=0)
    """Attempts whose worker or process vanished; capped."""
    worker_id: Mapped[str | None] = mapped_column(sa.String(40))
    lease_expires_at: Mapped[datetime | None] = mapped_column(Timestamp)

    not_before: Mapped[datetime | None] = mapped_column(Timestamp)
    """While queued after a lost attempt: what may have killed it gets time to pass."""

    version: Mapped[int] = mapped_column(default=1)
    """Raised by each change of what a client sees: the ETag."""
    last_event: Mapped[int] = mapped_column(default=0)
    traceparent: Mapped[str | None] = mapped_column(sa.String(55))
    """Of the request that submitted it, if that is traced: the spans of all attempts are its children."""
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    queued_at: Mapped[datetime] = mapped_column(Timestamp)
    started_at: Mapped[datetime | None] = mapped_column(Timestamp)
    """Of the first attempt."""
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)

    @property
    def trace_id(self) -> str | None:
        return self.traceparent.split("-")[1] if self.traceparent else None


class FurtherSourceModel(Base):
    """Beside the job's own source model; in the order of the request."""

    __tablename__ = "job_further_source_models"
    __table_args__ = (sa.Index("ix_job_further_source_models_model", "source_model_id"),)

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    source_model_id: Mapped[str] = mapped_column(sa.ForeignKey("source_models.id"))


class JobDataset(Base):
    """A dataset that the job's data name."""

    __tablename__ = "job_datasets"
    __table_args__ = (sa.Index("ix_job_datasets_dataset", "dataset_id"),)

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(sa.ForeignKey("datasets.id"), primary_key=True)


class JobLabel(Base):
    __tablename__ = "job_labels"
    __table_args__ = (sa.Index("ix_job_labels_find", "tenant_id", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(63), primary_key=True)
    value: Mapped[str] = mapped_column(sa.String(255))
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))


class JobEvent(Base):
    """seq counts from 1 within a job, without gaps, in commit order: a cursor that misses nothing."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    attempt: Mapped[int]
    at: Mapped[datetime] = mapped_column(Timestamp)
    kind: Mapped[str] = mapped_column(sa.String(20))
    """state | phase | started | data | checkpoint | warning | log."""
    message: Mapped[str] = mapped_column(sa.Text)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class JobMetric(Base):
    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    series: Mapped[str] = mapped_column(sa.String(100), primary_key=True)
    step: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    value: Mapped[float] = mapped_column(sa.Double)
    at: Mapped[datetime | None] = mapped_column(Timestamp)
    """When the worker wrote it down, within a second of the step. None: before this column was there."""


class MlflowExport(Base):
    """What MLflow was told of a job, and when it is to be told more: from the job's first claim until it is deleted."""

    __tablename__ = "mlflow_exports"
    __table_args__ = (sa.Index("ix_mlflow_exports_due", "next_at"),)

    job_id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    """No foreign key: a job may be deleted before MLflow has heard of its end."""
    run_id: Mapped[str | None] = mapped_column(sa.String(256))
    """Of the run that has its parameters, and its metrics through `sent_until`."""
    sent_until: Mapped[datetime | None] = mapped_column(Timestamp)
    claims: Mapped[int] = mapped_column(default=0)
    """The fencing token of the workers that export."""
    failures: Mapped[int] = mapped_column(default=0)
    """In a row."""
    next_at: Mapped[datetime | None] = mapped_column(Timestamp)
    """None: there is nothing more to tell, as the job's end has arrived or it was given up. A retry has more."""
    error: Mapped[str | None] = mapped_column(sa.String(500))
    """Of the last try, if it failed."""


class Turn(Base):
    """When a job of the share was last claimed."""

    __tablename__ = "turns"

    share: Mapped[str] = mapped_column(sa.String(300), primary_key=True)
    at: Mapped[datetime] = mapped_column(Timestamp)


class Worker(Base):
    """A worker process, by its heartbeat. job_id: what it runs now. takes_cuda: also jobs that need a CUDA device."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    host: Mapped[str] = mapped_column(sa.String(255))
    pid: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(sa.String(40))
    takes_cuda: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    started_at: Mapped[datetime] = mapped_column(Timestamp)
    last_seen_at: Mapped[datetime] = mapped_column(Timestamp)
