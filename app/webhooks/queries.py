"""Reads of webhooks and their deliveries. The tenant is an argument of every one that a client can cause."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.database import Tenant
from app.webhooks.table import Delivery, Webhook


def by_id(session: Session, tenant_id: str, webhook_id: str, *, keep: bool = False) -> Webhook | None:
    """keep: it can neither be deleted nor be found gone before this transaction ends."""
    query = sa.select(Webhook).where(Webhook.tenant_id == tenant_id, Webhook.id == webhook_id)
    return session.scalar(query.with_for_update(read=True, key_share=True) if keep else query)


def newest(session: Session, tenant_id: str, *, after: str | None, limit: int) -> Sequence[Webhook]:
    """Newest first, by keyset: ids sort by time."""
    query = sa.select(Webhook).where(Webhook.tenant_id == tenant_id).order_by(Webhook.id.desc()).limit(limit)
    return session.scalars(query.where(Webhook.id < after) if after is not None else query).all()


def count(session: Session, tenant_id: str) -> int:
    """For whoever is about to make one: others who are wait until this transaction ends."""
    session.execute(sa.select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))
    return session.scalar(sa.select(sa.func.count()).where(Webhook.tenant_id == tenant_id)) or 0


def listening(session: Session, tenant_id: str, type: str, *, keep: bool = False) -> list[Webhook]:
    """Those of the tenant that want to hear of it. keep: none of them can be deleted before this transaction ends. A tenant has a few
    dozen at most."""
    query = sa.select(Webhook).where(Webhook.tenant_id == tenant_id, Webhook.gone_at.is_(None)).order_by(Webhook.id)
    found = session.scalars(query.with_for_update(read=True, key_share=True) if keep else query).all()
    return [webhook for webhook in found if type in webhook.types]


def deliveries(session: Session, tenant_id: str, webhook_id: str, *, after: str | None, limit: int) -> Sequence[Delivery]:
    """Newest first."""
    query = sa.select(Delivery).where(Delivery.tenant_id == tenant_id, Delivery.webhook_id == webhook_id)
    query = query.order_by(Delivery.id.desc()).limit(limit)
    return session.scalars(query.where(Delivery.id < after) if after is not None else query).all()
