"""Which queued job is next. Shares take turns; within a share the higher priority goes first, then whoever has waited longest.

A share is a tenant, or a tenant's jobs with one value of the label `queue_label`. Next is the share with the fewest running jobs;
of those, the one whose last turn is longest ago. So whoever queues a thousand jobs, at whatever priority, delays the others by
one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.jobs.states import LEASED, Status
from app.jobs.table import Job, Turn

NEVER = datetime.min.replace(tzinfo=UTC)
TURNS_KEPT = timedelta(days=1)


def share_of(tenant_id: str, labels: dict[str, str], label: str) -> str:
    """label: the setting queue_label, or empty."""
    return f"{tenant_id}/{labels[label]}" if label in labels else tenant_id


def claimable(now: datetime, takes_cuda: bool = True) -> tuple[Any, ...]:
    """Where a job may be claimed by a worker with a CUDA device, or by one without."""
    any_device = () if takes_cuda else (Job.needs_cuda.is_(False),)
    return Job.status == Status.QUEUED, sa.or_(Job.not_before.is_(None), Job.not_before <= now), *any_device


def next_job(session: Session, now: datetime, takes_cuda: bool = True) -> tuple[str, str, datetime] | None:
    """(job id, share, since when it waits) of the next job that such a worker may claim, locked against other claims. None: there
    is none."""
    for share in _by_turn(session):
        # A queued row was last changed by what queued it, at first or again.
        waiting = sa.select(Job.id, Job.updated_at).where(*claimable(now, takes_cuda), Job.share == share)
        first = waiting.order_by(Job.rank, Job.queued_at, Job.id).limit(1)
        if (found := session.execute(first.with_for_update(skip_locked=True)).one_or_none()) is not None:
            return found.id, share, found.updated_at
    return None


def had_its_turn(session: Session, share: str, now: datetime) -> None:
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(Turn).values(share=share, at=now)
    session.execute(insert.on_conflict_do_update(index_elements=[Turn.share], set_={"at": now}))


def forget_turns(session: Session, now: datetime) -> None:
    """Of shares that have had none for a day: a share without one is next in any case."""
    session.execute(sa.delete(Turn).where(Turn.at < now - TURNS_KEPT))


def _by_turn(session: Session) -> list[str]:
    """The shares that have queued jobs, in the order of their turns."""
    shares = _queued_shares(session)
    if len(shares) < 2:
        return shares
    running = sa.select(Job.share, sa.func.count()).where(Job.status.in_(sorted(LEASED))).group_by(Job.share)
    load: dict[str, int] = dict(session.execute(running).all())
    last: dict[str, datetime] = dict(session.execute(sa.select(Turn.share, Turn.at).where(Turn.share.in_(shares))).all())
    return sorted(shares, key=lambda share: (load.get(share, 0), last.get(share, NEVER), share))


def _queued_shares(session: Session) -> list[str]:
    """One look into the index for each, however many jobs it has queued: the smallest, the smallest above that, and so on."""

    def smallest(*where: Any) -> sa.ScalarSelect[str]:
        return sa.select(sa.func.min(Job.share)).where(Job.status == Status.QUEUED, *where).scalar_subquery()

    found = sa.select(smallest().label("share")).cte("shares", recursive=True)
    found = found.union_all(sa.select(smallest(Job.share > found.c.share)).where(found.c.share.is_not(None)))
    return list(session.scalars(sa.select(found.c.share).where(found.c.share.is_not(None))))
