"""What an attempt fetches from the blob store and the cache, and carries there: while either is away or full it waits, and renews its
lease."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from app.blobs import BlobsAwayError
from worker.beside import Call, GaveUpError, NotYetError
from worker.lease import Lease
from worker.outage import Outage

WAITS_FOR: dict[type[Exception], tuple[str, str]] = {
    BlobsAwayError: ("the blob store is away", "the blob store is back"),
    NotYetError: ("the job waits for the cache", "the job has waited for the cache"),
}
T = TypeVar("T")


def run(lease: Lease, work: Callable[[], T], name: str) -> T:
    """What `work` returns: in a thread, while this one renews the lease; again and again until the store answers and there is room.
    Raises GaveUpError where the job is lost or to stop: then a try that has begun has the grace of a cancelled job, and there is no
    other."""
    asked_at: float | None = None
    waits: dict[type[Exception], Outage] = {}
    while True:
        call = Call(work, name)
        while not call.ended(lease.tick_s):
            lease.tell()
            if lease.to_end:
                asked_at = asked_at or time.monotonic()
                if time.monotonic() - asked_at > lease.worker.settings.cancel_grace_s:
                    raise GaveUpError
        try:
            done = call.result()
        except (BlobsAwayError, NotYetError) as error:
            kind = BlobsAwayError if isinstance(error, BlobsAwayError) else NotYetError
            if kind not in waits:
                waits[kind] = Outage(*WAITS_FOR[kind])
                away = waits[kind].away
                lease.heard.log(f"{away}: {error}" if kind is NotYetError else away)
            waits[kind].goes_on(error)
            lease.tell()
            if lease.to_end:
                raise GaveUpError from error
            time.sleep(lease.tick_s * random.uniform(0.5, 1.5))  # noqa: S311 - so that two that wait for each other get apart
        else:
            for wait in waits.values():
                wait.over()
            return done
