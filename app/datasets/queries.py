"""Reads of datasets. The tenant is an argument of every one."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.datasets.table import Dataset
from app.jobs.table import Job, JobDataset


def by_id(session: Session, tenant_id: str, dataset_id: str) -> Dataset | None:
    return session.scalar(sa.select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.id == dataset_id))


def by_sha256(session: Session, tenant_id: str, sha256: str) -> Dataset | None:
    return session.scalar(sa.select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.sha256 == sha256))


def newest(session: Session, tenant_id: str, *, after: str | None, limit: int) -> Sequence[Dataset]:
    """Newest first, by keyset: ids sort by time."""
    query = sa.select(Dataset).where(Dataset.tenant_id == tenant_id).order_by(Dataset.id.desc()).limit(limit)
    return session.scalars(query.where(Dataset.id < after) if after is not None else query).all()


def jobs_that_name(session: Session, tenant_id: str, dataset_id: str, *, limit: int) -> Sequence[str]:
    """Their ids, newest first."""
    named = sa.select(JobDataset.job_id).where(JobDataset.dataset_id == dataset_id)
    query = sa.select(Job.id).where(Job.tenant_id == tenant_id, Job.id.in_(named)).order_by(Job.id.desc())
    return session.scalars(query.limit(limit)).all()
