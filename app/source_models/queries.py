"""Reads of source models. The tenant is an argument of every one."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.jobs.table import FurtherSourceModel, Job
from app.source_models.table import SourceModel


def by_id(session: Session, tenant_id: str, model_id: str) -> SourceModel | None:
    return session.scalar(sa.select(SourceModel).where(SourceModel.tenant_id == tenant_id, SourceModel.id == model_id))


def by_fingerprint(session: Session, tenant_id: str, fingerprint: str) -> SourceModel | None:
    return session.scalar(
        sa.select(SourceModel).where(SourceModel.tenant_id == tenant_id, SourceModel.fingerprint == fingerprint)
    )


def newest(session: Session, tenant_id: str, *, after: str | None, limit: int) -> Sequence[SourceModel]:
    """Newest first, by keyset: ids sort by time."""
    query = sa.select(SourceModel).where(SourceModel.tenant_id == tenant_id).order_by(SourceModel.id.desc()).limit(limit)
    return session.scalars(query.where(SourceModel.id < after) if after is not None else query).all()


def jobs_that_name(session: Session, tenant_id: str, model_id: str, *, limit: int) -> Sequence[str]:
    """Their ids, newest first."""
    further = sa.select(FurtherSourceModel.job_id).where(FurtherSourceModel.source_model_id == model_id)
    named = sa.or_(Job.source_model_id == model_id, Job.id.in_(further))
    return session.scalars(sa.select(Job.id).where(Job.tenant_id == tenant_id, named).order_by(Job.id.desc()).limit(limit)).all()
