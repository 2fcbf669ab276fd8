"""One attempt at a job: what it is given, its process, and what it comes to."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.errors import Problem, few
from app.jobs import checkpoints as kept_checkpoints
from app.jobs import lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.states import TERMINAL, Status
from app.jobs.table import Job
from app.references import shown
from app.spec import AdaptationSpec, DataSpec, Fetched
from worker import checkpoints, errands, fetching, inputs, publication, workspace
from worker.adaptation.events import Checkpointed, Event, Result
from worker.beside import GaveUpError
from worker.cache import Cache, Held
from worker.child import Child
from worker.hearing import document
from worker.lease import DatabaseAwayError, Lease
from worker.metrics import AttemptMeter
from worker.process import WorkerProcess
from worker.tracing import AttemptTrace
from worker.watch import Ending, Watch
from worker.workspace import Workspace

FULL = "disk_full"
OF_THE_MACHINE = {
    FULL: "the worker's disk is full",
    "device_unavailable": "the worker's GPU cannot be used",
    "device_failed": "the worker's GPU failed",
}
"""What says nothing about the job: its next attempt may find another machine, or this one mended."""
SENDING_S = 5.0
"""For a checkpoint that is on its way to the blob store when the attempt is over."""
log = structlog.get_logger()
T = TypeVar("T")


def run(worker: WorkerProcess, claim: Claim) -> Job | None:
    """Runs a claimed job to the end of this attempt. The job as it was left; None: it was lost to another."""
    attempt = Attempt(worker, claim)
    job = None
    try:
        with attempt.trace.active():
            log.info("attempt begins", job_id=claim.job_id, attempt=claim.attempt)
            job = attempt.run()
    except DatabaseAwayError:
        log.warning("the database is away and the worker stops: the lease is left to run out", job_id=claim.job_id)
        attempt.meter.lost_by = "database_away"
        return None
    finally:
        attempt.close()
        outcome, cause = attempt.meter.end(job)
        attempt.trace.end(outcome, cause, attempt.meter.method)
        _log_end(claim, job, outcome, cause)
    if job is None:
        log.warning("the job was lost: nothing of this attempt is kept", job_id=claim.job_id, attempt=claim.attempt)
    elif attempt.meter.lost_by == FULL and job.status not in TERMINAL:
        workspace.shed(worker.settings.work_dir, claim.job_id, claim.attempt)
    elif job.status in TERMINAL:
        workspace.remove(worker.settings.work_dir, claim.job_id, claim.attempt)
        if job.status == Status.SUCCEEDED:  # else a client may have it tried again; housekeeping deletes them in a while
            kept_checkpoints.remove(worker.blobs, claim.tenant_id, claim.job_id)
    return job


def _log_end(claim: Claim, job: Job | None, outcome: str, cause: str) -> None:
    """What became of the attempt, by the words of modalbridge_worker_attempts_total, and of the job: queued again, say."""
    say = log.warning if outcome in ("failed", "lost") else log.info
    why = {"cause": cause} if cause else {}
    left = {"status": job.status} if job is not None else {}
    say("attempt ends", job_id=claim.job_id, attempt=claim.attempt, outcome=outcome, **why, **left)


class Attempt:
    """limit_at: when its time is up, by the monotonic clock. held: in the cache, by what its references have as their base."""

    def __init__(self, worker: WorkerProcess, claim: Claim) -> None:
        self.worker, self.claim, self.settings = worker, claim, worker.settings
        self.lease = Lease(worker, claim)
        self.limit_at = time.monotonic() + self.settings.job_time_limit_s
        self.meter = AttemptMeter(worker.metrics)
        self.trace = AttemptTrace(claim)
        self.child: Child | None = None
        self.sender: checkpoints.Sender | None = None
        self.held: dict[str, Held] = {}

    def run(self) -> Job | None:
        try:
            space = workspace.prepare(self.settings.work_dir, self.claim.job_id, self.claim.attempt)
            if (spec := self._brought(space)) is None:
                return None
            self.meter.method = spec.method
            space.spec.write_text(spec.model_dump_json(), encoding="utf-8")
            self.sender = checkpoints.Sender(self.worker.blobs, self.claim, space)
            self.trace.child_starts()
            command = inputs.command(self.settings, space, (held.folder for held in self.held.values()))
            self.child = Child(command, space.out, inputs.environment(space, self.worker.takes_cuda), space.stderr)
            self.meter.child_began()
            ending = Watch(self.child, self.lease, self.limit_at, self._hear).run()
            for one in (self.meter, self.trace):
                killed_by = signal_name(-ending.code) if ending.code < 0 else None
                one.child_ended(ending.code, killed_by, by_worker=ending.ended_by is not None)
            return None if self.lease.lost else self._end(ending, space)
        except DatabaseAwayError:
            raise
        except GaveUpError:
            return None if self.lease.lost else self.lease.finish(lifecycle.hand_back)
        except Problem as problem:
            return self._fail(problem)
        except Exception as error:
            # Whatever went wrong here, the job must not wait for its lease, nor circle: a lost attempt is counted.
            log.exception("an attempt failed in its supervisor", job_id=self.claim.job_id, attempt=self.claim.attempt)
            self.close()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return self._fail(Problem(FULL, f"the supervisor could not write: {error.strerror}"))
            return self._lose("supervisor", f"its supervisor failed: {type(error).__name__}")

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            if self.child.outlives_its_death:
                self.worker.must_end = f"process {self.child.process.pid} of job {self.claim.job_id} cannot be killed"
        if self.sender is not None:
            self.sender.close(SENDING_S)
        fetching.release(self.held)

    def _hear(self, event: Event | None) -> None:
        self.meter.hear(event)
        self.trace.hear(event)
        if isinstance(event, Checkpointed) and self.sender is not None:
            self.sender.written()

    # What it is given -----------------------------------------------------------------------------------------------

    def _brought(self, space: Workspace) -> AdaptationSpec | None:
        """The engine's spec; and in the workspace and the cache what it names. None: the job was lost meanwhile.
        Raises Problem reference_missing, invalid_request, OSError."""
        asked = self.lease.insist(lambda session, _now: inputs.asked_for(session, self.claim.job_id))
        blobs, work_dir = self.worker.blobs, self.settings.work_dir
        paths, warnings = self._errand(lambda: inputs.from_blobs(blobs, self.claim, asked.models, space, work_dir), "fetch")
        for warning in warnings:
            self.lease.heard.warn(warning)
        spec = inputs.spec(asked, paths)
        fetched = self._fetch(spec.data, asked)
        return None if self.lease.lost else spec.model_copy(update={"fetched": fetched})

    def _fetch(self, data: DataSpec, asked: inputs.Asked) -> dict[str, Fetched]:
        """Holds what the references lead to in the cache until the attempt is over. Raises Problem, OSError."""
        uris = fetching.remote_uris(data)
        if not uris:
            return {}
        sources = fetching.sources(self.claim.job_id, uris, asked.pins, asked.datasets, self.worker.blobs, self.settings)
        cache = Cache(self.settings.cache_folder, self.settings.cache_bytes)
        self.lease.heard.log(f"fetching {few([shown(uri) for uri in sources])}")
        self.held = self._errand(lambda: fetching.fetch(sources, cache, self._going_on), "fetch data")
        return fetching.placed(self.held, uris)

    def _going_on(self) -> None:
        """Asked by what runs beside. Raises GaveUpError, Problem time_limit."""
        if self.lease.to_end:
            raise GaveUpError
        if time.monotonic() > self.limit_at:
            limit = self.settings.job_time_limit_s
            raise Problem("time_limit", f"its data were not fetched within {limit:g} s, the most that an attempt may take")

    def _errand(self, work: Callable[[], T], name: str) -> T:
        """Raises what errands.run raises."""
        with self.trace.part(name):
            return errands.run(self.lease, work, name)

    # At the end -----------------------------------------------------------------------------------------------------

    def _end(self, ending: Ending, space: Workspace) -> Job | None:
        heard, code, ended_by = self.lease.heard, ending.code, ending.ended_by
        done = code == 0 or ended_by is not None
        if heard.result is not None and done and self.lease.status != Status.CANCELLING:
            try:
                return self._publish(heard.result, publication.files(heard.result, space.out / "artifacts", self.claim))
            except Problem as problem:
                return self._fail(problem)
        self._hand_over()
        if self.lease.status == Status.CANCELLING:
            return self.lease.finish(lifecycle.finish_cancel)
        if heard.failed is not None:
            return self._fail(heard.failed)
        if ended_by == "time_limit":
            limit = self.settings.job_time_limit_s
            return self._fail(Problem("time_limit", f"stopped after {limit:g} s, the most that an attempt may take"))
        if ended_by == "asked" or (heard.stopped and done):
            return self.lease.finish(lifecycle.hand_back)
        words = self.child.last_words() if self.child else ""
        heard.log(f"the process's last words:\n{words}" if words else "the process died without a word")
        if code < 0:
            return self._lose(signal_name(-code), f"its process was killed by {signal_name(-code)}")
        return self._fail(Problem("child_died", f"exit code {code} and no result"))

    def _hand_over(self) -> None:
        """The last checkpoint reaches the blob store, where the next attempt looks for it, if it does so soon."""
        until = time.monotonic() + self.settings.cancel_grace_s
        while self.sender is not None and not self.sender.up_to_date(self.lease.tick_s):
            self.lease.tell()
            if self.lease.lost or time.monotonic() > until:
                return

    def _publish(self, result: Result, files: list[publication.File]) -> Job | None:
        """All or nothing: blobs first, then rows and state in one transaction under a lease that was just renewed."""
        blobs = self.worker.blobs
        try:
            rows = self._errand(lambda: publication.keep(blobs, files), "publish")
        except GaveUpError:
            publication.discard(blobs, files)
            raise

        def succeed(session: Session, claim: Claim, *, now: datetime) -> Job | None:
            if self.lease.renewed(session, now) != Status.RUNNING:
                return None
            return lifecycle.succeed(session, claim, result=document(result)["summary"], artifacts=rows, now=now)

        job = self.lease.finish(succeed)
        if job is None and (job := self.lease.insist(self._published)) is None:
            publication.discard(blobs, files)
            return self.lease.finish(lifecycle.finish_cancel)
        return job

    def _published(self, session: Session, _now: datetime) -> Job | None:
        """The job, if it is this attempt that it was published from: a commit may have happened whose answer was lost."""
        ours = sa.exists().where(Artifact.job_id == Job.id, Artifact.attempt == self.claim.attempt)
        return session.scalar(sa.select(Job).where(Job.id == self.claim.job_id, ours))

    def _fail(self, problem: Problem) -> Job | None:
        if (found := OF_THE_MACHINE.get(problem.code)) is not None:
            reason = f"{found}: {problem.detail}"
            if problem.code != FULL:
                self.worker.must_end = reason
            return self._lose(problem.code, reason, problem)
        return self.lease.finish(lambda session, claim, *, now: lifecycle.fail(session, claim, problem.document(), now=now))

    def _lose(self, cause: str, reason: str, problem: Problem | None = None) -> Job | None:
        self.meter.lost_by = cause
        backoff = timedelta(seconds=self.settings.lost_backoff_s)
        given = {"most": self.settings.max_lost_attempts, "backoff": backoff, "problem": problem}
        return self.lease.finish(lambda session, claim, *, now: lifecycle.lose(session, claim, reason, **given, now=now))


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
