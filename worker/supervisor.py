"""One attempt at a job: its process, its lease, what it says, how it ends.

All writes name the attempt (the fencing token). While the database is away the child goes on and its words are held;
when it is back, the attempt number decides whether the job is still ours. It is asked in a thread beside, so that one that
hangs keeps nobody from stopping the child. While the blob store is away the attempt waits for it, and renews its lease.
"""

from __future__ import annotations

import errno
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.blobs import BlobsAwayError
from app.errors import Problem, few
from app.jobs import checkpoints as kept_checkpoints
from app.jobs import lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.states import TERMINAL, Status
from app.jobs.table import Job
from app.references import shown
from app.spec import AdaptationSpec, DataSpec, Fetched
from worker import checkpoints, fetching, inputs, publication, workspace
from worker.adaptation.events import Result
from worker.beside import Call, GaveUpError, NotYetError
from worker.cache import Cache, Held
from worker.child import Child
from worker.hearing import Hearing, document
from worker.metrics import AttemptMeter
from worker.outage import Outage
from worker.process import WorkerProcess
from worker.tracing import AttemptTrace
from worker.workspace import Workspace

AWAY = (OperationalError, InterfaceError, TimeoutError)
"""The database does not answer, for now."""
FULL = "disk_full"
OF_THE_MACHINE = {
    FULL: "the worker's disk is full",
    "device_unavailable": "the worker's GPU cannot be used",
    "device_failed": "the worker's GPU failed",
}
"""What says nothing about the job: its next attempt may find another machine, or this one mended."""
WAITS_FOR: dict[type[Exception], tuple[str, str]] = {
    BlobsAwayError: ("the blob store is away", "the blob store is back"),
    NotYetError: ("the job waits for the cache", "the job has waited for the cache"),
}
TICK_S = 0.5
ANSWER_S = 10.0
"""A database that has not answered by then is away, for a worker that is to stop."""
SENDING_S = 5.0
"""For a checkpoint that is on its way to the blob store when the attempt is over."""
log = structlog.get_logger()
T = TypeVar("T")


class DatabaseAwayError(Exception):
    """The worker has to go while the database is away: the lease will run out, and another takes over."""


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


@dataclass
class Telling:
    """A transaction that is under way. words: what was heard until it began. renews: the lease, too."""

    words: Hearing
    renews: bool
    call: Call[Status | None]
    began_at: float
    late: bool = False


class Attempt:
    """status: of the job as last seen. lost: another has the job, or nobody; not a word more may be written."""

    def __init__(self, worker: WorkerProcess, claim: Claim) -> None:
        self.worker, self.claim, self.settings, self.db = worker, claim, worker.settings, worker.db
        self.lease = timedelta(seconds=self.settings.lease_s)
        self.tick_s = min(TICK_S, self.settings.lease_s / 6)
        self.heard = Hearing()
        self.telling: Telling | None = None
        self.without_database = Outage("the database is away: the job goes on", "the database is back")
        self.meter = AttemptMeter(worker.metrics)
        self.trace = AttemptTrace(claim)
        self.child: Child | None = None
        self.sender: checkpoints.Sender | None = None
        self.held: dict[str, Held] = {}
        self.giving_up = threading.Event()
        self.status = Status.RUNNING
        self.lost = False
        self.began_at = self.renewed_at = time.monotonic()
        self.asked_at: float | None = None
        self.over_at: float | None = None
        self.outstayed = False
        self.timed_out = False

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
            code = self._supervise(self.child)
            stopped = self.lost or self.timed_out or self.asked_at is not None
            for one in (self.meter, self.trace):
                one.child_ended(code, signal_name(-code) if code < 0 else None, by_worker=stopped)
            return None if self.lost else self._end(code, space)
        except DatabaseAwayError:
            raise
        except GaveUpError:
            return None if self.lost else self._finish(lifecycle.hand_back)
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

    # While it runs --------------------------------------------------------------------------------------------------

    def _supervise(self, child: Child) -> int:
        """Until the process is gone and heard out. Its exit code."""
        ended_at = None
        while not (child.silent and ended_at):
            if self.heard.full:
                self.meter.hear(None)  # it may well speak: nobody listens
            if self.heard.full or child.silent:
                time.sleep(self.tick_s)
            else:
                written = self.heard.checkpoints
                for line in child.lines(self.tick_s):
                    event = self.heard.hear(line)
                    self.meter.hear(event)
                    self.trace.hear(event)
                    if self.heard.full:
                        break
                if self.sender is not None and self.heard.checkpoints > written:
                    self.sender.written()
            self._tell()
            if self.lost:
                break
            if child.outlives_its_death:
                return -signal.SIGKILL  # it is in the kernel, and will not come back from there: the job need not wait for it
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
        """Writes what was heard, renews the lease where it is time, and sees whether the job is to go on. Waits for a tick at most:
        the next call hears what came of it, and until then nothing more is told."""
        if (telling := self.telling) is None:
            words = self.heard.take()
            renews = words.waiting or time.monotonic() - self.renewed_at >= self.settings.lease_s / 3
            call = Call(lambda: self._told(words, renews), "tell")
            self.telling = telling = Telling(words, renews, call, time.monotonic())
        if telling.call.ended(self.tick_s):
            self._heed(telling)
        elif not telling.late and time.monotonic() - telling.began_at > ANSWER_S:
            telling.late = True
            log.warning("the database does not answer: the job goes on", job_id=self.claim.job_id)

    def _told(self, words: Hearing, renews: bool) -> Status | None:
        """Beside. None: the attempt has lost its job."""
        if not renews:
            with self.db.read() as session:
                return lifecycle.held(session, self.claim)
        with self.db.write() as session:
            now = self.db.now(session)
            status = lifecycle.renew(session, self.claim, lease=self.lease, now=now)
            if status is not None and words.waiting:
                words.write(session, self.claim, now=now)
        return status

    def _heed(self, telling: Telling) -> None:
        """What came of it."""
        self.telling = None
        try:
            status = telling.call.result()
        except Exception as error:
            self.heard.give_back(telling.words)
            if not isinstance(error, AWAY):
                raise
            self.without_database.goes_on(error)
            return
        self.without_database.over()
        if telling.renews:
            if status is not None and time.monotonic() - self.renewed_at > self.settings.lease_s * 2 / 3:
                self.worker.metrics.late_renewals.inc()
            self.renewed_at = time.monotonic()
        if status is None:
            self.lost = True
        else:
            self.status = status

    def _steer(self, child: Child) -> None:
        """Asks the process to stop, and kills it where it does not, where it has said its last word and does not end, or where its
        time is up."""
        now = time.monotonic()
        if self.heard.over:
            self.over_at = self.over_at or now
            if now - self.over_at > self.settings.cancel_grace_s:
                self.outstayed = True
                child.kill()
        if self.status == Status.CANCELLING or self.worker.stop_asked:
            if self.asked_at is None:
                self.asked_at = now
                child.ask_to_stop()
            elif now - self.asked_at > self.settings.cancel_grace_s:
                child.kill()
        elif now - self.began_at > self.settings.job_time_limit_s:
            self.timed_out = True
            child.kill()

    def _beside(self, work: Callable[[], T], name: str) -> T:
        """What `work` returns, which uses the blob store or the cache: in a thread, while this one renews the lease; again and
        again until the store answers and there is room. Raises GaveUpError where the job is lost or to stop: then a try that
        has begun has the grace of a cancelled job, and there is no other."""
        with self.trace.part(name):
            return self._tried(work, name)

    def _tried(self, work: Callable[[], T], name: str) -> T:
        asked_at: float | None = None
        waits: dict[type[Exception], Outage] = {}
        while True:
            call = Call(work, name)
            while not call.ended(self.tick_s):
                self._tell()
                if asked_at is None and self._to_end():
                    asked_at = time.monotonic()
                    self.giving_up.set()
                if asked_at is not None and time.monotonic() - asked_at > self.settings.cancel_grace_s:
                    raise GaveUpError
            try:
                done = call.result()
            except (BlobsAwayError, NotYetError) as error:
                kind = BlobsAwayError if isinstance(error, BlobsAwayError) else NotYetError
                if kind not in waits:
                    waits[kind] = Outage(*WAITS_FOR[kind])
                    away = waits[kind].away
                    self.heard.log(f"{away}: {error}" if kind is NotYetError else away)
                waits[kind].goes_on(error)
                self._tell()
                if self._to_end():
                    raise GaveUpError from error
                time.sleep(self.tick_s * random.uniform(0.5, 1.5))  # noqa: S311 - so that two that wait for each other get apart
            else:
                for wait in waits.values():
                    wait.over()
                return done

    def _to_end(self) -> bool:
        return self.lost or self.worker.stop_asked or self.status == Status.CANCELLING

    # At the end -----------------------------------------------------------------------------------------------------

    def _end(self, code: int, space: Workspace) -> Job | None:
        heard = self.heard
        if heard.result is not None and (code == 0 or self.outstayed) and self.status != Status.CANCELLING:
            try:
                return self._publish(heard.result, publication.files(heard.result, space.out / "artifacts", self.claim))
            except Problem as problem:
                return self._fail(problem)
        self._hand_over()
        if self.status == Status.CANCELLING:
            return self._finish(lifecycle.finish_cancel)
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

    def _hand_over(self) -> None:
        """The last checkpoint reaches the blob store, where the next attempt looks for it, if it does so soon."""
        until = time.monotonic() + self.settings.cancel_grace_s
        while self.sender is not None and not self.sender.up_to_date(self.tick_s):
            self._tell()
            if self.lost or time.monotonic() > until:
                return

    def _publish(self, result: Result, files: list[publication.File]) -> Job | None:
        """All or nothing: blobs first, then rows and state in one transaction under a lease that was just renewed."""
        blobs = self.worker.blobs
        try:
            rows = self._beside(lambda: publication.keep(blobs, files), "publish")
        except GaveUpError:
            publication.discard(blobs, files)
            raise

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
        if (found := OF_THE_MACHINE.get(problem.code)) is not None:
            reason = f"{found}: {problem.detail}"
            if problem.code != FULL:
                self.worker.must_end = reason
            return self._lose(problem.code, reason, problem)
        return self._finish(lambda session, claim, *, now: lifecycle.fail(session, claim, problem.document(), now=now))

    def _lose(self, cause: str, reason: str, problem: Problem | None = None) -> Job | None:
        self.meter.lost_by = cause
        backoff = timedelta(seconds=self.settings.lost_backoff_s)
        given = {"most": self.settings.max_lost_attempts, "backoff": backoff, "problem": problem}
        return self._finish(lambda session, claim, *, now: lifecycle.lose(session, claim, reason, **given, now=now))

    def _finish(self, change: Callable[..., Job | None]) -> Job | None:
        """The last change of this attempt, with whatever was heard and not yet written, in one transaction."""
        if self.telling is not None:
            self._await(self.telling.call)
            self._heed(self.telling)

        def write(session: Session, now: datetime) -> Job | None:
            if self.heard.waiting and self.heard.write(session, self.claim, now=now) is None:
                return None
            return change(session, self.claim, now=now)

        job = self._insist(write)
        self.heard.written()
        return job

    def _insist(self, step: Callable[[Session, datetime], T]) -> T:
        """One transaction, again and again until the database answers. Raises DatabaseAwayError if the worker is to stop."""

        def once() -> T:
            with self.db.write() as session:
                return step(session, self.db.now(session))

        while True:
            call = Call(once, "insist")
            self._await(call)
            try:
                done = call.result()
            except AWAY as error:
                if self.worker.stop_asked:
                    raise DatabaseAwayError from error
                self.without_database.goes_on(error)
                time.sleep(self.tick_s)
            else:
                self.without_database.over()
                return done

    def _await(self, call: Call[object]) -> None:
        """Raises DatabaseAwayError."""
        if not answered(call, self.worker, self.tick_s):
            raise DatabaseAwayError

    # What it is given -----------------------------------------------------------------------------------------------

    def _brought(self, space: Workspace) -> AdaptationSpec | None:
        """The engine's spec; and in the workspace and the cache what it names. None: the job was lost meanwhile.
        Raises Problem reference_missing, invalid_request, OSError."""
        asked = self._insist(lambda session, _now: inputs.asked_for(session, self.claim.job_id))
        blobs, work_dir = self.worker.blobs, self.settings.work_dir
        paths, warnings = self._beside(lambda: inputs.from_blobs(blobs, self.claim, asked.models, space, work_dir), "fetch")
        for warning in warnings:
            self.heard.warn(warning)
        spec = inputs.spec(asked, paths)
        fetched = self._fetch(spec.data, asked)
        return None if self.lost else spec.model_copy(update={"fetched": fetched})

    def _fetch(self, data: DataSpec, asked: inputs.Asked) -> dict[str, Fetched]:
        """Holds what the references lead to in the cache until the attempt is over. Raises Problem, OSError."""
        uris = fetching.remote_uris(data)
        if not uris:
            return {}
        sources = fetching.sources(self.claim.job_id, uris, asked.pins, asked.datasets, self.worker.blobs, self.settings)
        cache = Cache(self.settings.cache_folder, self.settings.cache_bytes)
        self.heard.log(f"fetching {few([shown(uri) for uri in sources])}")
        self.held = self._beside(lambda: fetching.fetch(sources, cache, self._going_on), "fetch data")
        return fetching.placed(self.held, uris)

    def _going_on(self) -> None:
        """Asked by what runs beside. Raises GaveUpError, Problem time_limit."""
        if self.giving_up.is_set():
            raise GaveUpError
        if time.monotonic() - self.began_at > (limit := self.settings.job_time_limit_s):
            raise Problem("time_limit", f"its data were not fetched within {limit:g} s, the most that an attempt may take")


def answered(call: Call[object], worker: WorkerProcess, tick_s: float) -> bool:
    """Waits for a call to the database. False: the worker is to stop, and the database hangs."""
    asked_at: float | None = None
    while not call.ended(tick_s):
        if worker.stop_asked:
            asked_at = asked_at or time.monotonic()
            if time.monotonic() - asked_at > ANSWER_S:
                return False
    return True


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
