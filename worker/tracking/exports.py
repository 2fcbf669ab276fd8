"""Tells MLflow of jobs, if the settings name a server: every worker does, in a thread beside its housekeeping.

What is to be told is a row, written in the transaction that claims a job; when the job's end has arrived there it is kept, for a
retry goes on in the same run. So no job waits for MLflow or fails by it; and whoever dies while telling leaves the job to be told again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.database import Database
from app.jobs.states import TERMINAL
from app.jobs.table import Job, MlflowExport
from app.settings import Settings
from worker.beside import Call
from worker.process import WorkerProcess
from worker.tracking import story

LIVE = timedelta(seconds=30)
"""Between two exports of a job that goes on; one that has ended is exported at once."""
CLAIM = timedelta(minutes=5)
"""Renewed while the export goes on, and so long that whoever sleeps for a while does not lose it."""
RENEW_S = 60.0
PASS_S = 60.0
"""After this a pass takes no more jobs: the next one goes on."""
FIRST, LONGEST = timedelta(seconds=10), timedelta(minutes=10)
"""After a failure, doubled each time."""
MOST = 1000
"""Failures in a row, which take about a week: then it is given up."""
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we try again, and look first whether the run is there
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Of MLflow's own client, where the operator has not said otherwise."""
BATCH = 500
UNTOLD = timedelta(days=1)
"""Due for so long, nobody tells it: a worker that is told where MLflow is looks every few seconds, and pauses for minutes at most."""
SCRATCH = "mlflow"
ABANDONED_S = 24 * 3600.0
log = structlog.get_logger()


class LostError(Exception):
    """Another worker exports this job by now."""


@dataclass(frozen=True)
class Export:
    """This worker's hold on a row."""

    job_id: str
    run_id: str | None
    sent_until: datetime | None
    claims: int
    failures: int


@dataclass(frozen=True)
class Done:
    """run_id: None where there is no run to tell more to. over: there is nothing more to come, unless the job is tried again."""

    run_id: str | None
    sent_until: datetime | None
    over: bool


def require(settings: Settings) -> None:
    """Raises RuntimeError where MLflow is to be told and its client is not installed."""
    if settings.mlflow_tracking_uri and importlib.util.find_spec("mlflow") is None:
        raise RuntimeError(
            "MODALBRIDGE_MLFLOW_TRACKING_URI is set, and MLflow's client is not there: install modalbridge[mlflow]"
        )


def begin(session: Session, job_id: str, now: datetime) -> None:
    """In the transaction that claims the job. An export that is under way has read an older state: its word does not count."""
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(MlflowExport)
    again = {"claims": MlflowExport.claims + 1, "next_at": now}
    session.execute(insert.on_conflict_do_update(index_elements=["job_id"], set_=again), {"job_id": job_id, "next_at": now})


def tell_mlflow(worker: WorkerProcess) -> None:
    """All that is due, or as much as a pass has time for. Ends at the first failure: the others would wait for the same server."""
    if not worker.settings.mlflow_tracking_uri:
        return
    until = time.monotonic() + PASS_S
    while time.monotonic() < until and (export := claim(worker.db)) is not None:
        try:
            done = _renewed(worker, export)
        except LostError:
            continue
        except Exception as error:
            log.exception("MLflow was not told of a job", job_id=export.job_id, failures=export.failures + 1)
            given_up = fail(worker.db, export, f"{type(error).__name__}: {error}")
            worker.metrics.mlflow_exports.labels("given_up" if given_up else "failed").inc()
            return
        settle(worker.db, export, done)
        worker.metrics.mlflow_exports.labels("sent").inc()


def _renewed(worker: WorkerProcess, export: Export) -> Done:
    """A server may take longer for one answer than a claim lasts. Another worker would begin anew then, and so on in turns: none would
    come to an end, and no failure would count, as it would be that of a worker whose export it is not."""
    call = Call(lambda: _tell(worker, export), "mlflow-export")
    while not call.ended(RENEW_S):
        with contextlib.suppress(LostError, OperationalError):  # it finds out itself; and the database may be back in time
            hold(worker.db, export)
    return call.result()


def _tell(worker: WorkerProcess, export: Export) -> Done:
    for name, value in CLIENT.items():
        os.environ.setdefault(name, value)
    from worker.tracking import run  # MLflow takes a second to import, and most set-ups need none of it

    with worker.db.read() as session:
        told = story.read(session, export.job_id, after=export.sent_until)
    scratch = worker.settings.work_dir / SCRATCH
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    return run.tell(run.open_client(worker.settings), worker, export, told, scratch, lambda: hold(worker.db, export))


def due(now: datetime) -> Any:
    """Of a row, and its job beside it: one that is over, or deleted, does not wait until it is its turn again, unless it failed."""
    over = sa.or_(Job.id.is_(None), Job.status.in_(sorted(TERMINAL)))
    return sa.and_(
        MlflowExport.next_at <= now + LIVE, sa.or_(MlflowExport.next_at <= now, sa.and_(over, MlflowExport.failures == 0))
    )


def claim(db: Database) -> Export | None:
    """The row that has been due for longest becomes this worker's for a while."""
    oldest = sa.select(MlflowExport).outerjoin(Job, Job.id == MlflowExport.job_id).order_by(MlflowExport.next_at).limit(1)
    with db.read() as session:  # a writing transaction locks all of SQLite, and mostly nothing is due
        if session.scalar(oldest.where(due(db.now(session)))) is None:
            return None
    with db.write() as session:
        now = db.now(session)
        row = session.scalar(oldest.where(due(now)).with_for_update(of=MlflowExport, skip_locked=True))
        if row is None:
            return None
        row.claims += 1
        row.next_at = now + CLAIM
        return Export(row.job_id, row.run_id, row.sent_until, row.claims, row.failures)


def _ours(export: Export) -> tuple[Any, Any]:
    return MlflowExport.job_id == export.job_id, MlflowExport.claims == export.claims


def hold(db: Database, export: Export) -> None:
    """For a while more. Raises LostError."""
    with db.write() as session:
        renewed = sa.update(MlflowExport).where(*_ours(export)).values(next_at=db.now(session) + CLAIM)
        if session.execute(renewed).rowcount == 0:
            raise LostError


def settle(db: Database, export: Export, done: Done) -> None:
    """What was told is written down. A row that another worker has claimed since, or whose job was, is left as it is."""
    with db.write() as session:
        if done.run_id is None:
            session.execute(sa.delete(MlflowExport).where(*_ours(export)))
            return
        next_at = None if done.over else db.now(session) + LIVE
        values = {"run_id": done.run_id, "sent_until": done.sent_until, "failures": 0, "error": None, "next_at": next_at}
        session.execute(sa.update(MlflowExport).where(*_ours(export)).values(values))


def fail(db: Database, export: Export, error: str) -> bool:
    """To be tried again later; True: it is given up."""
    failures = export.failures + 1
    with db.write() as session:
        if failures >= MOST:
            session.execute(sa.update(MlflowExport).where(*_ours(export)).values(failures=0, next_at=None))
            return True
        after = min(FIRST * 2 ** min(export.failures, 16), LONGEST) * random.uniform(1, 1.2)  # noqa: S311 - not all at once
        values = {"failures": failures, "error": error.replace("\0", "")[:500], "next_at": db.now(session) + after}
        session.execute(sa.update(MlflowExport).where(*_ours(export)).values(values))
    return False


def forget_deleted(worker: WorkerProcess) -> None:
    """What was told of jobs that are deleted; those of which there is more to tell are told first, unless nobody does: where MLflow
    was switched off."""
    gone = sa.select(MlflowExport.job_id).outerjoin(Job, Job.id == MlflowExport.job_id).where(Job.id.is_(None)).limit(BATCH)
    with worker.db.read() as session:
        untold = MlflowExport.next_at < worker.db.now(session) - UNTOLD
        ids = session.scalars(gone.where(sa.or_(MlflowExport.next_at.is_(None), untold))).all()
    if ids:
        with worker.db.write() as session:
            session.execute(sa.delete(MlflowExport).where(MlflowExport.job_id.in_(ids)))


def remove_scratch(worker: WorkerProcess) -> None:
    """Copies of files that killed workers left."""
    for folder in (worker.settings.work_dir / SCRATCH).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another worker on this machine was faster
            if time.time() - folder.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
