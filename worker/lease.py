"""An attempt's hold on its job: what its process says is written, its lease renewed, and what becomes of the job is seen.

All writes name the attempt (the fencing token). While the database is away the words are held; when it is back, the attempt number
decides whether the job is still ours. It is asked in a thread beside, so that one that hangs keeps nobody from stopping the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from app.jobs import lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.states import Status
from app.jobs.table import Job
from worker.beside import Call
from worker.hearing import Hearing
from worker.outage import Outage
from worker.process import WorkerProcess

AWAY = (OperationalError, InterfaceError, TimeoutError)
"""The database does not answer, for now."""
TICK_S = 0.5
ANSWER_S = 10.0
"""A database that has not answered by then is away, for a worker that is to stop."""
log = structlog.get_logger()
T = TypeVar("T")


class DatabaseAwayError(Exception):
    """The worker has to go while the database is away: the lease will run out, and another takes over."""


@dataclass
class Telling:
    """A transaction that is under way. words: what was heard until it began. renews: the lease, too."""

    words: Hearing
    renews: bool
    call: Call[Status | None]
    began_at: float
    late: bool = False


class Lease:
    """heard: of the process, and not yet written. status: of the job as last seen. lost: another has the job, or nobody; not a word
    more may be written."""

    def __init__(self, worker: WorkerProcess, claim: Claim) -> None:
        self.worker, self.claim, self.db = worker, claim, worker.db
        self.lasts_s = worker.settings.lease_s
        self.tick_s = min(TICK_S, self.lasts_s / 6)
        self.heard = Hearing()
        self.status = Status.RUNNING
        self.lost = False
        self._renewed_at = time.monotonic()
        self._telling: Telling | None = None
        self._without_database = Outage("the database is away: the job goes on", "the database is back")

    @property
    def to_end(self) -> bool:
        """The job is lost or cancelled, or the worker is to stop."""
        return self.lost or self.worker.stop_asked or self.status == Status.CANCELLING

    def tell(self) -> None:
        """Writes what was heard, renews the lease where it is time, and sees whether the job is to go on. Waits for a tick at most:
        the next call hears what came of it, and until then nothing more is told."""
        if (telling := self._telling) is None:
            words = self.heard.take()
            renews = words.waiting or time.monotonic() - self._renewed_at >= self.lasts_s / 3
            call = Call(lambda: self._told(words, renews), "tell")
            self._telling = telling = Telling(words, renews, call, time.monotonic())
        if telling.call.ended(self.tick_s):
            self._heed(telling)
        elif not telling.late and time.monotonic() - telling.began_at > ANSWER_S:
            telling.late = True
            log.warning("the database does not answer: the job goes on", job_id=self.claim.job_id)

    def renewed(self, session: Session, now: datetime) -> Status | None:
        """The job's status. None: the attempt has lost it."""
        return lifecycle.renew(session, self.claim, lease=timedelta(seconds=self.lasts_s), now=now)

    def _told(self, words: Hearing, renews: bool) -> Status | None:
        """Beside."""
        if not renews:
            with self.db.read() as session:
                return lifecycle.held(session, self.claim)
        with self.db.write() as session:
            now = self.db.now(session)
            status = self.renewed(session, now)
            if status is not None and words.waiting:
                words.write(session, self.claim, now=now)
        return status

    def _heed(self, telling: Telling) -> None:
        """What came of it."""
        self._telling = None
        try:
            status = telling.call.result()
        except Exception as error:
            self.heard.give_back(telling.words)
            if not isinstance(error, AWAY):
                raise
            self._without_database.goes_on(error)
            return
        self._without_database.over()
        if telling.renews:
            if status is not None and time.monotonic() - self._renewed_at > self.lasts_s * 2 / 3:
                self.worker.metrics.late_renewals.inc()
            self._renewed_at = time.monotonic()
        if status is None:
            self.lost = True
        else:
            self.status = status

    def finish(self, change: Callable[..., Job | None]) -> Job | None:
        """The last change of this attempt, with whatever was heard and not yet written, in one transaction. None: it has lost its
        job. Raises DatabaseAwayError."""
        if self._telling is not None:
            self._await(self._telling.call)
            self._heed(self._telling)

        def write(session: Session, now: datetime) -> Job | None:
            if self.heard.waiting and self.heard.write(session, self.claim, now=now) is None:
                return None
            return change(session, self.claim, now=now)

        job = self.insist(write)
        self.heard.written()
        return job

    def insist(self, step: Callable[[Session, datetime], T]) -> T:
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
                self._without_database.goes_on(error)
                time.sleep(self.tick_s)
            else:
                self._without_database.over()
                return done

    def _await(self, call: Call[object]) -> None:
        if not answered(call, self.worker, self.tick_s):
            raise DatabaseAwayError


def answered(call: Call[object], worker: WorkerProcess, tick_s: float = TICK_S) -> bool:
    """Waits for a call to the database. False: the worker is to stop, and the database hangs."""
    asked_at: float | None = None
    while not call.ended(tick_s):
        if worker.stop_asked:
            asked_at = asked_at or time.monotonic()
            if time.monotonic() - asked_at > ANSWER_S:
                return False
    return True
