"""The invariants of docs/architecture.md, as queries that count what must never be. 0 is healthy.

A statement sees one instant, in which a change and its event, or a state and its artifacts, are there together or not at all. Jobs that are over are looked at while they are among the newest: the cost does not grow with the table, and each job
is seen many times.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.datasets.table import Dataset
from app.jobs import queue
from app.jobs.states import LEASED, TERMINAL, Status
from app.jobs.table import FurtherSourceModel, Job, JobDataset, JobEvent, JobLabel, Worker
from app.settings import Settings
from app.source_models.table import SourceModel

NEWEST = 1000
NEWEST_BY_EVENT = 200
"""Jobs whose events are counted: a job has hundreds."""

leased = Job.status.in_(sorted(LEASED))
terminal = Job.status.in_(sorted(TERMINAL))


def expired_lease_left(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs whose worker fell silent, and that no housekeeping has taken back."""
    return _count(session, sa.select(Job.id).where(leased, Job.lease_expires_at < now - _late(settings)))


def worker_with_two_jobs(session: Session, settings: Settings, now: datetime) -> int:
    """Workers that hold more than one job."""
    held = sa.select(Job.worker_id).where(leased).group_by(Job.worker_id).having(sa.func.count() > 1)
    return _count(session, held)


def holder_disagrees_with_state(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs that are held by nobody while they run, or by somebody while they do not."""
    wrong = sa.or_(sa.and_(leased, Job.worker_id.is_(None)), sa.and_(sa.not_(leased), Job.worker_id.is_not(None)))
    return _count(session, _of_newest(wrong))


def finish_disagrees_with_state(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs that are over without an end, or have an end and go on."""
    wrong = sa.or_(sa.and_(terminal, Job.finished_at.is_(None)), sa.and_(sa.not_(terminal), Job.finished_at.is_not(None)))
    return _count(session, _of_newest(wrong))


def lost_too_often(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs that lost as many attempts as a job may, and circle on."""
    circling = sa.select(Job.id).where(Job.status.in_([*sorted(LEASED), Status.QUEUED]))
    return _count(session, circling.where(Job.lost_attempts >= settings.max_lost_attempts))


def cancelling_for_too_long(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs that were asked to stop, and neither their worker's grace nor the end of its lease has stopped them."""
    most = timedelta(seconds=settings.cancel_grace_s + settings.lease_s) + _late(settings)
    asked = sa.exists().where(
        JobEvent.job_id == Job.id,
        JobEvent.attempt == Job.attempt,  # an earlier one may have been cancelled, and retried
        JobEvent.data["status"].as_string() == Status.CANCELLING,
        JobEvent.at < now - most,
    )
    return _count(session, sa.select(Job.id).where(Job.status == Status.CANCELLING, asked))


def succeeded_without_model(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs that have succeeded, and lack artifacts or a result."""
    nothing = sa.or_(~sa.exists().where(Artifact.job_id == Job.id), Job.result.is_(None))
    return _count(session, _of_newest(Job.status == Status.SUCCEEDED, nothing))


def artifact_of_another_attempt(session: Session, settings: Settings, now: datetime) -> int:
    """Artifacts that are not of the attempt that succeeded."""
    stale = sa.or_(Job.status != Status.SUCCEEDED, Artifact.attempt != Job.attempt)
    return _count(session, _of_newest(stale).join(Artifact, Artifact.job_id == Job.id))


def queued_beside_idle_worker(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs that have long been queued, at most as many as there are workers that have long been there, are idle, and can run
    them."""
    late = now - _late(settings)

    def waiting(needs_cuda: bool) -> sa.ScalarSelect[int]:
        found = sa.select(sa.func.count()).where(*queue.claimable(late), Job.updated_at < late)
        return found.where(Job.needs_cuda.is_(needs_cuda)).scalar_subquery()

    def idle(takes_cuda: bool) -> sa.ScalarSelect[int]:
        found = sa.select(sa.func.count()).where(
            Worker.job_id.is_(None),
            Worker.started_at < late,
            Worker.last_seen_at >= now - timedelta(seconds=settings.worker_silent_s),
        )
        return found.where(Worker.takes_cuda.is_(takes_cuda)).scalar_subquery()

    cuda, others, with_cuda, without = session.execute(sa.select(waiting(True), waiting(False), idle(True), idle(False))).one()
    served = min(cuda, with_cuda)
    return served + min(others, with_cuda - served + without)


def row_of_another_tenant(session: Session, settings: Settings, now: datetime) -> int:
    """Source models, datasets, artifacts and labels that are not of their job's tenant."""
    further = _of_newest(SourceModel.tenant_id != Job.tenant_id).join(FurtherSourceModel, FurtherSourceModel.job_id == Job.id)
    others = _count(session, further.join(SourceModel, SourceModel.id == FurtherSourceModel.source_model_id))
    datasets = _of_newest(Dataset.tenant_id != Job.tenant_id).join(JobDataset, JobDataset.job_id == Job.id)
    others += _count(session, datasets.join(Dataset, Dataset.id == JobDataset.dataset_id))
    return others + sum(
        _count(session, _of_newest(table.tenant_id != Job.tenant_id).join(table, joined))
        for table, joined in (
            (SourceModel, SourceModel.id == Job.source_model_id),
            (Artifact, Artifact.job_id == Job.id),
            (JobLabel, JobLabel.job_id == Job.id),
        )
    )


def gap_in_events(session: Session, settings: Settings, now: datetime) -> int:
    """Jobs whose events are not numbered from 1 to the last without a gap."""
    newest = sa.select(Job.id, Job.last_event).order_by(Job.id.desc()).limit(NEWEST_BY_EVENT).subquery()
    number, last = sa.func.count(JobEvent.seq), newest.c.last_event
    numbered = (
        sa.select(newest.c.id)
        .outerjoin(JobEvent, JobEvent.job_id == newest.c.id)
        .group_by(newest.c.id, last)
        .having(sa.or_(number != last, sa.func.max(JobEvent.seq) != last, sa.func.min(JobEvent.seq) != 1))
    )
    return _count(session, numbered)


INVARIANTS: dict[str, Callable[[Session, Settings, datetime], int]] = {
    query.__name__: query
    for query in (
        expired_lease_left,
        worker_with_two_jobs,
        holder_disagrees_with_state,
        finish_disagrees_with_state,
        lost_too_often,
        cancelling_for_too_long,
        succeeded_without_model,
        artifact_of_another_attempt,
        queued_beside_idle_worker,
        row_of_another_tenant,
        gap_in_events,
    )
}


def violations(session: Session, settings: Settings, now: datetime) -> dict[str, int]:
    """Of each invariant, by its name."""
    return {name: query(session, settings, now) for name, query in INVARIANTS.items()}


def _late(settings: Settings) -> timedelta:
    """Long enough for any worker's housekeeping to have made it good."""
    return timedelta(seconds=settings.worker_silent_s + 3 * settings.housekeeping_s)


def _of_newest(*where: Any) -> sa.Select[Any]:
    newest = sa.select(Job.id).order_by(Job.id.desc()).limit(NEWEST).subquery()
    return sa.select(Job.id).join(newest, newest.c.id == Job.id).where(*where)


def _count(session: Session, found: sa.Select[Any]) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(found.subquery())) or 0
