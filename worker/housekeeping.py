"""What makes good for everything that can be lost: a pass every few seconds, in a thread of each worker.

Each part may run in every worker at once. One that fails is logged, and keeps neither the others nor the next pass from
running.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa
import structlog

from app import broker
from app.blobs import BlobsAwayError
from app.jobs import lifecycle, queries, queue
from app.jobs.states import Status
from app.jobs.table import Job, Worker
from app.webhooks import outbox
from app.webhooks import queries as webhook_queries
from worker import invariants, leftovers, tracing, webhooks
from worker.beside import Call
from worker.lease import AWAY
from worker.process import WorkerProcess
from worker.tracking import exports

LEAVE_S = 5.0
"""For each thing that is under way when the worker stops: a pass, a sweep, the last word to the database."""
SWEEP_S = 600.0
"""Between two sweeps of the disk, which cost more than a look at the database."""
WATCH_S = 60.0
"""Between two looks at the invariants."""
KNOCK_S = 30.0
"""A worker that has heard nothing for this long asks for a proof that it hears."""
FAILED = "a part of housekeeping failed; the next pass tries it again"
log = structlog.get_logger()


class Housekeeping:
    """The thread. start() makes the worker known; stop() returns when the thread has ended and the worker's row is gone, or when
    that takes too long, as a database that hangs makes it: then the row is left to be seen as silent."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self._stop = threading.Event()
        self._sweep: Call[None] | None = None
        self._delivery: Call[None] | None = None
        self._tracking: Call[None] | None = None
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(LEAVE_S)
            if self._sweep is not None:
                self._sweep.ended(LEAVE_S)
            # Not before the thread has ended, which would write the row anew.
            if self._thread.is_alive() or not Call(lambda: _attempt(leave, self.worker), "leave").ended(LEAVE_S):
                log.warning("the worker leaves without a word: the database does not answer", worker_id=self.worker.id)

    def _run(self) -> None:
        swept_at = watched_at = None
        while not self._stop.is_set():
            look(self.worker)
            if watched_at is None or time.monotonic() - watched_at >= WATCH_S:
                _attempt(watch_invariants, self.worker)
                watched_at = time.monotonic()
            # Beside this thread: a blob store that hangs must not make this worker fall silent.
            if self._sweep is None or (self._sweep.ended(0) and time.monotonic() - swept_at >= SWEEP_S):
                self._sweep = Call(lambda: _attempt(sweep, self.worker), "sweep")
                swept_at = time.monotonic()
            if self._delivery is None or self._delivery.ended(0):
                self._delivery = Call(lambda: _attempt(webhooks.deliver, self.worker), "webhooks")
            if self._tracking is None or self._tracking.ended(0):
                self._tracking = Call(lambda: _attempt(exports.tell_mlflow, self.worker), "mlflow")
            self.worker.metrics.passed()
            self._stop.wait(self.worker.settings.housekeeping_s)


def look(worker: WorkerProcess) -> None:
    """Every few seconds: what other workers and waiting jobs depend on."""
    for part in (heartbeat, expire_leases, wake_idle_workers, knock, tell_progress):
        _attempt(part, worker)


def sweep(worker: WorkerProcess) -> None:
    """Now and then: what was left lying about, and what is no longer to be kept."""
    for part in (
        leftovers.recount_storage,
        leftovers.remove_old_jobs,
        leftovers.remove_work_folders,
        leftovers.tidy_cache,
        leftovers.remove_abandoned_uploads,
        leftovers.remove_half_written_messages,
        leftovers.remove_orphaned_blobs,
        leftovers.remove_silent_rows,
        webhooks.forget_deliveries,
        exports.forget_deleted,
        exports.remove_scratch,
    ):
        _attempt(part, worker)


def _attempt(part: Callable[[WorkerProcess], None], worker: WorkerProcess) -> None:
    failures = worker.metrics.failures.labels(part.__name__)
    try:
        part(worker)
    except (*AWAY, BlobsAwayError) as error:  # where it was asked is of no interest, and it will be asked all the time
        log.warning(FAILED, part=part.__name__, error=str(error)[:300])
        failures.inc()
    except Exception:
        log.exception(FAILED, part=part.__name__)
        failures.inc()


def heartbeat(worker: WorkerProcess) -> None:
    """This worker's row, made anew if it was removed meanwhile."""
    trying_since = worker.trying_since = worker.trying_since or time.monotonic()
    with worker.db.write() as session:
        now = worker.db.now(session)
        heard_at = session.scalar(sa.select(sa.func.max(Worker.last_seen_at))) if worker.first_heartbeat else now
        known = sa.update(Worker).where(Worker.id == worker.id).values(last_seen_at=now, job_id=worker.job_id)
        if session.execute(known).rowcount == 0:
            session.add(
                Worker(
                    id=worker.id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    job_id=worker.job_id,
                    takes_cuda=worker.takes_cuda,
                    started_at=now,
                    last_seen_at=now,
                )
            )
    # A worker that has just begun cannot have seen it away; but then nobody was heard from for a while.
    nobody = heard_at is not None and now - heard_at > timedelta(
        seconds=worker.settings.housekeeping_s + worker.settings.lease_s / 3
    )
    if nobody or time.monotonic() - trying_since > worker.settings.lease_s / 3:
        worker.back_at = time.monotonic()
    worker.trying_since, worker.first_heartbeat = None, False


def settling(worker: WorkerProcess) -> bool:
    """Whether the database was away so lately that workers which live may not have renewed their leases, or made good what they make
    good: each has a lease's time for it, and nobody is judged by what the database says until then."""
    return time.monotonic() - worker.back_at < worker.settings.lease_s


def leave(worker: WorkerProcess) -> None:
    with worker.db.write() as session:
        session.execute(sa.delete(Worker).where(Worker.id == worker.id))


def expire_leases(worker: WorkerProcess) -> None:
    if settling(worker):
        return
    with worker.db.write() as session:
        given = worker.settings
        backoff = timedelta(seconds=given.lost_backoff_s)
        changed = lifecycle.expire_leases(session, most=given.max_lost_attempts, backoff=backoff, now=worker.db.now(session))
    for job, silent in changed:
        log.warning(
            "a lease ran out: its worker fell silent", job_id=job.id, attempt=job.attempt, worker_id=silent, status=job.status
        )
        ended = ("cancelled", "") if job.status == Status.CANCELLED else ("lost", "worker_silent")
        worker.metrics.attempts.labels(*ended).inc()
        tracing.fell_silent(job)


def wake_idle_workers(worker: WorkerProcess) -> None:
    """A wake-up for each queued job that an idle worker could take: whatever happened to those that were sent before.
    A busy worker needs none: it looks by itself when it is done."""
    with worker.db.read() as session:
        now = worker.db.now(session)
        since = now - timedelta(seconds=worker.settings.worker_silent_s)
        idle = [seen.takes_cuda for seen in queries.workers_seen_since(session, since) if seen.job_id is None]
        waiting = [
            (job_id, needs_cuda)
            for needs_cuda, most in ((True, sum(idle)), (False, len(idle)))
            for job_id in session.scalars(
                sa.select(Job.id)
                .where(*queue.claimable(now), Job.needs_cuda.is_(needs_cuda))
                .order_by(Job.queued_at, Job.id)
                .limit(most)
            )
        ]
    for job_id, needs_cuda in waiting:
        if not _wake(worker, job_id, needs_cuda):
            break  # the others would wait for the same broker, and the heartbeat with them


def knock(worker: WorkerProcess) -> None:
    """A message with no job behind it, from an idle worker that has heard none for a while. Some idle worker hears it, and in
    the long run each hears one: a worker that never does is deaf, however alive its process looks."""
    now = time.monotonic()
    if worker.job_id is None and min(now - worker.heard_at, now - worker.knocked_at) > KNOCK_S:
        worker.knocked_at = now
        _wake(worker, "none")


def _wake(worker: WorkerProcess, job_id: str, needs_cuda: bool = False) -> bool:
    sent = broker.wake(worker.celery, job_id, needs_cuda)
    worker.metrics.wake_ups_sent.labels("sent" if sent else "failed").inc()
    return sent


def tell_progress(worker: WorkerProcess) -> None:
    """Of this worker's own job, to the webhooks that want to hear of it."""
    if (job_id := worker.job_id) is None:
        return
    with worker.db.read() as session:
        job = session.get(Job, job_id)
        wanted = job is not None and bool(webhook_queries.listening(session, job.tenant_id, outbox.PROGRESS))
    if wanted:
        with worker.db.write() as session:
            outbox.tell_progress(session, session.get_one(Job, job_id), worker.db.now(session))


def watch_invariants(worker: WorkerProcess) -> None:
    """What must never be, and is: counted, and said aloud. Where the database cannot be asked, no number is left standing."""
    if settling(worker):
        worker.metrics.violations.clear()
        return
    try:
        with worker.db.read() as session:
            found = invariants.violations(session, worker.settings, worker.db.now(session))
    except Exception:
        worker.metrics.violations.clear()
        raise
    for name, number in found.items():
        worker.metrics.violations.labels(name).set(number)
        if number:
            log.error("an invariant is violated", invariant=name, violations=number)
