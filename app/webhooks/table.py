"""Webhooks, and what was and is to be delivered to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.database import JSON, Base, Timestamp


class Webhook(Base):
    __tablename__ = "webhooks"
    __table_args__ = (sa.Index("ix_webhooks_list", "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    url: Mapped[str] = mapped_column(sa.String(2000))
    types: Mapped[list[str]] = mapped_column(JSON)
    secret: Mapped[str] = mapped_column(sa.String(100))
    gone_at: Mapped[datetime | None] = mapped_column(Timestamp)
    """When it answered 410: nothing is sent to it any more."""
    created_at: Mapped[datetime] = mapped_column(Timestamp)


class Delivery(Base):
    """One message for one webhook, through all of its attempts. Its id is the message's: the same in each attempt."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        sa.Index("ix_webhook_deliveries_list", "webhook_id", "id"),
        sa.Index("ix_webhook_deliveries_due", "status", "next_at"),
        sa.Index("ix_webhook_deliveries_job", "job_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(sa.ForeignKey("webhooks.id", ondelete="CASCADE"))
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    job_id: Mapped[str | None] = mapped_column(sa.String(40))
    """No foreign key: a job may be deleted before the world has heard of it."""
    type: Mapped[str] = mapped_column(sa.String(40))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(sa.String(20))
    """pending | delivered | failed."""
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime | None] = mapped_column(Timestamp)
    """While pending: not before this."""
    response_status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(sa.String(500))
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
