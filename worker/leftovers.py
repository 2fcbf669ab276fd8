"""What is left lying about, or is no longer to be kept: parts of housekeeping's sweep, each of which may run in every worker at once."""

from __future__ import annotations

import re
import sys
from datetime import timedelta

import sqlalchemy as sa
import structlog

from app import broker, storage
from app.artifacts.table import Artifact
from app.blobs import ABANDONED_S, discard
from app.datasets.table import Dataset
from app.jobs import checkpoints, lifecycle, queue
from app.jobs.states import RETRIED, TERMINAL, Status
from app.jobs.table import Job, Worker
from app.source_models.table import SourceModel
from worker import workspace
from worker.cache import Cache
from worker.process import WorkerProcess

ORPHAN_S = 3600.0
"""A blob is kept before its row is committed: younger than this, it may be about to be named."""
SILENT_S = 24 * 3600.0
"""A worker that was not heard from for a day is gone."""
OURS = re.compile(r"(source_models/[^/]+|datasets/[^/]+|jobs/[^/]+/[^/]+/\d+|checkpoints/[^/]+/[^/]+)/[^/]+")
"""The shape of every key that this service makes. Whatever else lies in a bucket is not ours to delete."""
ARTIFACT = re.compile(r"jobs/[^/]+/([^/]+)/(\d+)/[^/]+")
"""Of a job's attempt. It may be publishing just now, and waiting for a database that is away."""
BATCH = 500
log = structlog.get_logger()


def remove_work_folders(worker: WorkerProcess) -> None:
    """Of jobs that are final, or deleted."""
    here = list(workspace.jobs_here(worker.settings.work_dir))
    for start in range(0, len(here), BATCH):
        some = here[start : start + BATCH]
        with worker.db.read() as session:
            known = {job.id: job for job in session.execute(sa.select(Job.id, Job.status, Job.attempt).where(Job.id.in_(some)))}
        for job_id in some:
            job = known.get(job_id)
            if job_id != worker.job_id and (job is None or job.status in TERMINAL):
                workspace.remove(worker.settings.work_dir, job_id, job.attempt if job else sys.maxsize)


def tidy_cache(worker: WorkerProcess) -> None:
    Cache(worker.settings.cache_folder, worker.settings.cache_bytes).tidy()


def remove_old_jobs(worker: WorkerProcess) -> None:
    """Those that the settings do not keep any longer. A blob that the store keeps for now is one that no row names."""
    given = worker.settings
    for statuses, seconds in ((frozenset({Status.SUCCEEDED}), given.keep_succeeded_s), (RETRIED, given.keep_failed_s)):
        while seconds:
            with worker.db.write() as session:
                before = worker.db.now(session) - timedelta(seconds=seconds)
                gone = lifecycle.forget(session, statuses, before=before, most=BATCH)
            if not gone:
                break
            for job_id, keys in gone.items():
                log.info("a job is over for long enough, and deleted", job_id=job_id)
                discard(worker.blobs, keys)


def remove_abandoned_uploads(worker: WorkerProcess) -> None:
    worker.blobs.clear_aside(ABANDONED_S)


def remove_half_written_messages(worker: WorkerProcess) -> None:
    broker.clear_half_written(worker.settings, ABANDONED_S)


def remove_orphaned_blobs(worker: WorkerProcess) -> None:
    """Those that no row names: their writer was killed between the blob and the commit, or between the commit that
    deleted their row and the deletion. And checkpoints of jobs that are deleted, succeeded, or ended otherwise longer ago than a client may
    want to have them tried again."""
    old = [key for key in worker.blobs.keys_older_than(ORPHAN_S) if OURS.fullmatch(key)]
    for start in range(0, len(old), BATCH):
        some = old[start : start + BATCH]
        job_of = {key: job_id for key in some if (job_id := checkpoints.job_of(key)) is not None}
        attempt_of = {key: (found[1], int(found[2])) for key in some if (found := ARTIFACT.fullmatch(key))}
        jobs = {*job_of.values(), *(job_id for job_id, _ in attempt_of.values())}
        with worker.db.read() as session:
            # What goes on first, then what is named: a job may end in between, and names its files as it does.
            lately = sa.and_(
                Job.status.in_(sorted(RETRIED)), Job.finished_at > worker.db.now(session) - timedelta(seconds=ORPHAN_S)
            )
            going = sa.select(Job.id, Job.attempt).where(Job.id.in_(jobs), sa.or_(Job.status.not_in(sorted(TERMINAL)), lately))
            attempts = {job.id: job.attempt for job in session.execute(going)}
            named = {
                key
                for column in (Artifact.blob_key, SourceModel.blob_key, Dataset.blob_key, Dataset.listing_key)
                for key in session.scalars(sa.select(column).where(column.in_(some)))
            }
        for key in some:
            job_id, attempt = attempt_of.get(key, (None, None))
            publishing = job_id in attempts and attempts[job_id] == attempt
            if key not in named and job_of.get(key) not in attempts and not publishing:
                log.info("an orphaned blob is removed", blob_key=key)
                worker.blobs.delete(key)


def remove_silent_rows(worker: WorkerProcess) -> None:
    """Of workers that have long been gone, and of turns that were long ago."""
    with worker.db.write() as session:
        now = worker.db.now(session)
        session.execute(sa.delete(Worker).where(Worker.last_seen_at < now - timedelta(seconds=SILENT_S)))
        queue.forget_turns(session, now)


def recount_storage(worker: WorkerProcess) -> None:
    with worker.db.write() as session:
        storage.recount(session, worker.db.now(session))
