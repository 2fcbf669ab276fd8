"""What webhooks are to hear. A message is written in the transaction of what it tells of, and sent by a worker afterwards: what was
committed is told, what was rolled back is not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.ids import new_id
from app.webhooks import queries
from app.webhooks.table import Delivery, Webhook

if TYPE_CHECKING:
    from app.jobs.table import Job

SUCCEEDED, FAILED, CANCELLED, PROGRESS = "job.succeeded", "job.failed", "job.cancelled", "job.progress"
TEST = "webhook.test"
OVER = (SUCCEEDED, FAILED, CANCELLED)
PROGRESS_EVERY = timedelta(minutes=1)


def tell(session: Session, job: Job, type: str, now: datetime, **more: Any) -> None:
    """A message to each webhook of the job's tenant that listens: thin, since whoever wants more can read the job."""
    data = {"id": job.id, "status": job.status, "attempt": job.attempt, "url": f"/jobs/{job.id}"} | more
    for webhook in queries.listening(session, job.tenant_id, type, keep=True):
        add(session, webhook, type, data, now, job_id=job.id)


def tell_progress(session: Session, job: Job, now: datetime) -> None:
    """At most once a minute for a job."""
    if job.progress is None:
        return
    lately = sa.select(Delivery.webhook_id).where(
        Delivery.job_id == job.id, Delivery.type == PROGRESS, Delivery.created_at > now - PROGRESS_EVERY
    )
    if session.scalar(lately.limit(1)) is None:
        tell(session, job, PROGRESS, now, phase=job.phase, fraction=job.progress["fraction"])


def add(
    session: Session, webhook: Webhook, type: str, data: dict[str, Any], now: datetime, job_id: str | None = None
) -> Delivery:
    delivery = Delivery(
        id=new_id("msg"),
        webhook_id=webhook.id,
        tenant_id=webhook.tenant_id,
        job_id=job_id,
        type=type,
        payload={"type": type, "timestamp": now.isoformat(), "data": data},
        status="pending",
        next_at=now,
        created_at=now,
    )
    session.add(delivery)
    return delivery
