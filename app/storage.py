"""How much a tenant has in the blob store, and how much it may have (MODALBRIDGE_STORAGE_BYTES).

What counts are source models, datasets and artifacts, by the sizes in their rows. The number stands in the tenant's row and changes in
the transaction that changes those; housekeeping counts it anew now and then, since a front end of an older version does not keep it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.database import Database, Tenant
from app.datasets.table import Dataset
from app.errors import Problem
from app.settings import Settings
from app.source_models.table import SourceModel

RECOUNT = timedelta(hours=1)
SIZES = (
    (SourceModel.tenant_id, SourceModel.stored_bytes),
    (Dataset.tenant_id, Dataset.stored_bytes),
    (Artifact.tenant_id, Artifact.size),
)


def require(db: Database, settings: Settings, tenant_id: str, more: int = 0) -> None:
    """Raises Problem quota_exceeded where `more` bytes are too many, or the tenant has all it may have."""
    if settings.storage_bytes:
        with db.read() as session:
            used = stored(session, tenant_id) or 0
        if used + max(more, 1) > settings.storage_bytes:
            raise exceeded(used, more, settings.storage_bytes)


def take(session: Session, tenant_id: str, size: int, most: int = 0) -> None:
    """Counts what is stored in this transaction. most: what the tenant may have; 0: no limit. Raises Problem quota_exceeded."""
    fits = sa.or_(Tenant.stored_bytes.is_(None), Tenant.stored_bytes + size <= most) if most else sa.true()
    counted = sa.update(Tenant).where(Tenant.id == tenant_id, fits).values(stored_bytes=Tenant.stored_bytes + size)
    if session.execute(counted).rowcount == 0:
        raise exceeded(stored(session, tenant_id) or 0, size, most)


def give_back(session: Session, tenant_id: str, size: int) -> None:
    """Counts what is deleted in this transaction."""
    session.execute(sa.update(Tenant).where(Tenant.id == tenant_id).values(stored_bytes=Tenant.stored_bytes - size))


def stored(session: Session, tenant_id: str) -> int | None:
    """None: not counted yet."""
    return session.scalar(sa.select(Tenant.stored_bytes).where(Tenant.id == tenant_id))


def recount(session: Session, now: datetime) -> None:
    """Of the tenants that it was not done for lately. Whoever is about to take or give back waits meanwhile, and no one else."""
    due = sa.or_(Tenant.stored_counted_at.is_(None), Tenant.stored_counted_at < now - RECOUNT)
    locked = sa.select(Tenant).where(due).with_for_update(key_share=True, skip_locked=True)
    for tenant in session.scalars(locked):
        sums = [session.scalar(sa.select(sa.func.sum(size)).where(owner == tenant.id)) for owner, size in SIZES]
        tenant.stored_bytes, tenant.stored_counted_at = sum(int(one or 0) for one in sums), now


def exceeded(used: int, more: int, most: int) -> Problem:
    detail = f"{used} of {most} bytes are in use" + (f", and this is {more} more" if more else "")
    return Problem("quota_exceeded", detail, used=used, limit=most)
