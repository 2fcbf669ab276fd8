"""What a woken worker does: take the queued job whose turn it is, run it, and go on until there is none."""

from __future__ import annotations

import time
from datetime import timedelta

import sqlalchemy as sa
import structlog
from structlog.contextvars import bound_contextvars

from app.jobs import lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.table import Worker
from worker import supervisor
from worker.beside import Call
from worker.lease import AWAY, answered
from worker.process import WorkerProcess
from worker.tracking import exports

log = structlog.get_logger()


def drain(worker: WorkerProcess) -> int:
    """Runs queued jobs, whichever is next, until none is left or the worker is to stop. How many attempts it ran."""
    ran = 0
    while not worker.stop_asked and worker.must_end is None:
        # Each job would be lost at once, one after the other, and those of workers that have room with them.
        if (free := worker.free_bytes()) < worker.settings.min_free_bytes:
            log.warning("no job is taken: the disk is too full", free_bytes=free, wanted=worker.settings.min_free_bytes)
            return ran
        call = Call(lambda: claim_next(worker), "claim")
        # A job that is claimed after all waits for its lease to run out.
        if not answered(call, worker):
            log.warning("the database does not answer and the worker stops")
            return ran
        try:
            claim = call.result()
        except AWAY as error:
            log.warning("the database is away: housekeeping wakes a worker when it is back", error=str(error)[:300])
            return ran
        if claim is None:
            return ran
        try:
            # In every line of the log until it is over.
            with bound_contextvars(job_id=claim.job_id, attempt=claim.attempt, worker_id=worker.id):
                supervisor.run(worker, claim)
        finally:
            worker.heard_at = time.monotonic()
            worker.job_id = None
        ran += 1
    return ran


def claim_next(worker: WorkerProcess) -> Claim | None:
    """The next job that it can run, if there is one; this worker's row says from the same instant what it is at."""
    with worker.db.write() as session:
        lease = timedelta(seconds=worker.settings.lease_s)
        now = worker.db.now(session)
        claim = lifecycle.claim_next(session, worker.id, lease=lease, now=now, takes_cuda=worker.takes_cuda)
        job_id = claim.job_id if claim else None
        session.execute(sa.update(Worker).where(Worker.id == worker.id).values(job_id=job_id))
        if job_id is not None and worker.settings.mlflow_tracking_uri:
            exports.begin(session, job_id, now)
    worker.job_id = job_id
    return claim
