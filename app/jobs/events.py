"""A job's own log: state changes, warnings, lines. Appended in the transaction of what they tell of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.jobs.states import TERMINAL
from app.jobs.table import Job, JobEvent
from app.webhooks import outbox


def append(
    session: Session,
    job: Job,
    kind: str,
    message: str,
    data: dict[str, Any] | None = None,
    *,
    attempt: int | None = None,
    now: datetime,
) -> int:
    """The new event's seq. The update locks the job's row, so seq order is commit order. What ends a job is told to webhooks."""
    seq = session.scalar(
        sa.update(Job)
        .where(Job.id == job.id)
        .values(last_event=Job.last_event + 1)
        .returning(Job.last_event)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        sa.insert(JobEvent).values(
            job_id=job.id,
            seq=seq,
            tenant_id=job.tenant_id,
            attempt=job.attempt if attempt is None else attempt,
            at=now,
            kind=kind,
            message=message.replace("\0", "\N{REPLACEMENT CHARACTER}")[:20_000],
            data=data,
        )
    )
    if kind == "state" and job.status in TERMINAL:
        outbox.tell(session, job, f"job.{job.status}", now)
    return seq
