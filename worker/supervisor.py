"""One attempt at a job: its process, its lease, what it says, how it ends.

All writes name the attempt (the fencing token). While the database is away the child goes on and its words are held;
when it is back, the attempt number decides whether the job is still ours.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.errors import Problem
from app.jobs import lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.states import TERMINAL, Status
from app.jobs.table import Job
from app.source_models.table import SourceModel
from app.spec import AdaptationSpec
from worker import publication, workspace
from worker.adaptation.events import Result
from worker.child import Child
from worker.hearing import Hearing, document
from worker.metrics import AttemptMeter
from worker.process import WorkerProcess
from worker.workspace import Workspace

AWAY = (OperationalError, InterfaceError, TimeoutError)
"""The database does not answer, for now."""
TICK_S = 0.5
OPEN_FILES = 4096
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Of this process's environment, to the child: where things are and how much it may use. No setting of ours is among
them, so no address or password of the database or the broker."""
log = structlog.get_logger()
T = TypeVar("T")


class DatabaseAwayError(Exception):
    """The worker has to go while the database is away: the lease will run out, and another takes over."""


def run(worker: WorkerProcess, claim: Claim) -> Job | None:
    """Runs a claimed job to the end of this attempt. The job as it was left; None: it was lost to another."""
    attempt = Attempt(worker, claim)
    job = None
    try:
        job = attempt.run()
    except DatabaseAwayError:
        log.warning("the database is away and the worker stops: the lease is left to run out", job_id=claim.job_id)
        attempt.meter.lost_by = "database_away"
        return None
    finally:
        attempt.close()
        attempt.meter.end(job)
    if job is None:
        log.warning("the job was lost: nothing of this attempt is kept", job_id=claim.job_id, attempt=claim.attempt)
    elif job.status in TERMINAL:
        workspace.remove(worker.settings.work_dir, claim.job_id)
    return job


class Attempt:
    """status: of the job as last seen. lost: another has the job, or nobody; not a word more may be written."""

    def __init__(self, worker: WorkerProcess, claim: Claim) -> None:
        self.worker, self.claim, self.settings, self.db = worker, claim, worker.settings, worker.db
        self.lease = timedelta(seconds=self.settings.lease_s)
        self.tick_s = min(TICK_S, self.settings.lease_s / 6)
        self.heard = Hearing()
        self.meter = AttemptMeter(worker.metrics)
        self.child: Child | None = None
        self.status = Status.RUNNING
        self.lost = False
        self.began_at = self.renewed_at = time.monotonic()
        self.asked_at: float | None = None
        self.timed_out = False

    def run(self) -> Job | None:
        try:
            space = workspace.prepare(self.settings.work_dir, self.claim.job_id, self.claim.attempt)
            spec = self._insist(self._spec)
            self.meter.method = spec.method
            space.spec.write_text(spec.model_dump_json(), encoding="utf-8")
            self.child = Child(self._command(space), space.out, self._environment(space), space.stderr)
            code = self._supervise(self.child)
            stopped = self.lost or self.timed_out or self.asked_at is not None
            self.meter.child_ended(code, signal_name(-code) if code < 0 else None, by_worker=stopped)
            return None if self.lost else self._end(code, space)
        except DatabaseAwayError:
            raise
        except Exception as error:
            # Whatever went wrong here, the job must not wait for its lease, nor circle: a lost attempt is counted.
            log.exception("an attempt failed in its supervisor", job_id=self.claim.job_id, attempt=self.claim.attempt)
            self.close()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return self._fail(Problem("disk_full", f"the supervisor could not write: {error.strerror}"))
            return self._lose("supervisor", f"its supervisor failed: {type(error).__name__}")

    def close(self) -> None:
        if self.child is not None:
            self.child.close()

    # While it runs --------------------------------------------------------------------------------------------------

    def _supervise(self, child: Child) -> int:
        """Until the process is gone and heard out. Its exit code."""
        ended_at = None
        while not (child.silent and ended_at):
            if self.heard.full or child.silent:
                time.sleep(self.tick_s)
            else:
                for line in child.lines(self.tick_s):
                    self.meter.hear(self.heard.hear(line))
                    if self.heard.full:
                        break
            self._tell()
            if self.lost:
                break
            if child.ended():
                ended_at = ended_at or time.monotonic()
                child.kill()  # what is left of its group
                if time.monotonic() > ended_at + 10:
                    break  # something that left the group holds the pipe
            else:
                self._steer(child)
        if self.lost:
            child.kill()
        return child.reap()

    def _tell(self) -> None:
        """Writes what was heard, renews the lease where it is time, and sees whether the job is to go on."""
        due = time.monotonic() - self.renewed_at >= self.settings.lease_s / 3
        try:
            if not (self.heard.waiting or due):
                with self.db.read() as session:
                    status = lifecycle.held(session, self.claim)
            else:
                with self.db.write() as session:
                    now = self.db.now(session)
                    status = lifecycle.renew(session, self.claim, lease=self.lease, now=now)
                    if status is not None and self.heard.waiting:
                        self.heard.write(session, self.claim, now=now)
                self.heard.written()
                if status is not None and time.monotonic() - self.renewed_at > self.settings.lease_s * 2 / 3:
                    self.worker.metrics.late_renewals.inc()
                self.renewed_at = time.monotonic()
        except AWAY as error:
            log.warning("the database is away: the job goes on", job_id=self.claim.job_id, error=str(error)[:300])
            return
        if status is None:
            self.lost = True
        else:
            self.status = status

    def _steer(self, child: Child) -> None:
        """Asks the process to stop, and kills it where it does not, or where its time is up."""
        now = time.monotonic()
        if self.status == Status.CANCELLING or self.worker.stop_asked:
            if self.asked_at is None:
                self.asked_at = now
                child.ask_to_stop()
            elif now - self.asked_at > self.settings.cancel_grace_s:
                child.kill()
        elif now - self.began_at > self.settings.job_time_limit_s:
            self.timed_out = True
            child.kill()

    # At the end -----------------------------------------------------------------------------------------------------

    def _end(self, code: int, space: Workspace) -> Job | None:
        heard = self.heard
        if self.status == Status.CANCELLING:
            return self._finish(lifecycle.finish_cancel)
        if heard.result is not None and code == 0:
            try:
                return self._publish(heard.result, publication.files(heard.result, space.out / "artifacts", self.claim))
            except Problem as problem:
                return self._fail(problem)
        if heard.failed is not None:
            return self._fail(heard.failed)
        if self.timed_out:
            limit = self.settings.job_time_limit_s
            return self._fail(Problem("time_limit", f"stopped after {limit:g} s, the most that an attempt may take"))
        if self.asked_at is not None or (heard.stopped and code == 0):
            return self._finish(lifecycle.hand_back)
        words = self.child.last_words() if self.child else ""
        heard.log(f"the process's last words:\n{words}" if words else "the process died without a word")
        if code < 0:
            return self._lose(signal_name(-code), f"its process was killed by {signal_name(-code)}")
        return self._fail(Problem("child_died", f"exit code {code} and no result"))

    def _publish(self, result: Result, files: list[publication.File]) -> Job | None:
        """All or nothing: blobs first, then rows and state in one transaction under a lease that was just renewed."""
        blobs = self.worker.blobs
        with ThreadPoolExecutor(1, thread_name_prefix="publish") as pool:
            copying = pool.submit(publication.keep, blobs, files)
            while not copying.done():
                time.sleep(min(self.tick_s, 0.05))
                if not self.lost:
                    self._tell()
        rows = copying.result()

        def succeed(session: Session, claim: Claim, *, now: datetime) -> Job | None:
            if lifecycle.renew(session, claim, lease=self.lease, now=now) != Status.RUNNING:
                return None
            return lifecycle.succeed(session, claim, result=document(result)["summary"], artifacts=rows, now=now)

        job = self._finish(succeed)
        if job is None and (job := self._insist(self._published)) is None:
            publication.discard(blobs, files)
            return self._finish(lifecycle.finish_cancel)
        return job

    def _published(self, session: Session, _now: datetime) -> Job | None:
        """The job, if it is this attempt that it was published from: a commit may have happened whose answer was lost."""
        ours = sa.exists().where(Artifact.job_id == Job.id, Artifact.attempt == self.claim.attempt)
        return session.scalar(sa.select(Job).where(Job.id == self.claim.job_id, ours))

    def _fail(self, problem: Problem) -> Job | None:
        return self._finish(lambda session, claim, *, now: lifecycle.fail(session, claim, problem.document(), now=now))

    def _lose(self, cause: str, reason: str) -> Job | None:
        self.meter.lost_by = cause
        most = self.settings.max_lost_attempts
        return self._finish(lambda session, claim, *, now: lifecycle.lose(session, claim, reason, most=most, now=now))

    def _finish(self, change: Callable[..., Job | None]) -> Job | None:
        """The last change of this attempt, with whatever was heard and not yet written, in one transaction."""

        def write(session: Session, now: datetime) -> Job | None:
            if self.heard.waiting and self.heard.write(session, self.claim, now=now) is None:
                return None
            return change(session, self.claim, now=now)

        job = self._insist(write)
        self.heard.written()
        return job

    def _insist(self, step: Callable[[Session, datetime], T]) -> T:
        """One transaction, again and again until the database answers. Raises DatabaseAwayError if the worker is to stop."""
        while True:
            try:
                with self.db.write() as session:
                    return step(session, self.db.now(session))
            except AWAY as error:
                if self.worker.stop_asked:
                    raise DatabaseAwayError from error
                log.warning("the database is away", job_id=self.claim.job_id, error=str(error)[:300])
                time.sleep(self.tick_s)

    # What it is given -----------------------------------------------------------------------------------------------

    def _spec(self, session: Session, _now: datetime) -> AdaptationSpec:
        request, description, key = session.execute(
            sa.select(Job.request, SourceModel.description, SourceModel.blob_key)
            .join(SourceModel, SourceModel.id == Job.source_model_id)
            .where(Job.id == self.claim.job_id)
        ).one()
        model: dict[str, Any] = {**description, "uri": str(self.worker.blobs.path(key))}
        return AdaptationSpec.model_validate({**request, "source_model": model})

    def _command(self, space: Workspace) -> list[str]:
        given = self.settings
        # Without a root nothing may be read; the engine alone would take no roots for "anywhere".
        roots = [str(root) for root in given.data_roots] or [str(space.tmp)]
        limits = {
            "--parent": os.getpid(),
            "--data-bytes": given.child_memory_bytes or int(0.8 * memory_bytes()),
            "--file-bytes": given.child_file_bytes,
            "--open-files": OPEN_FILES,
        }
        return [
            *(sys.executable, "-I", "-m", "worker.sandbox"),
            *(str(part) for limit in limits.items() for part in limit),
            *("--", str(space.spec), "--out", str(space.out), "--checkpoint-every", str(given.checkpoint_s)),
            *("--roots", *roots),
        ]

    def _environment(self, space: Workspace) -> dict[str, str]:
        passed = {name: value for name in PASSED_ON if (value := os.environ.get(name)) is not None}
        return {"LANG": "C.UTF-8"} | passed | {"HOME": str(space.folder), "TMPDIR": str(space.tmp)}


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def memory_bytes() -> int:
    """Of this machine, or of the control group if that has less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(machine, int(text)) if text.isdigit() else machine
