"""This worker process: who it is, what it holds open, what it is doing, and whether it is to stop."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field

from celery import Celery

from app.blobs import Blobs, open_blobs
from app.database import Database
from app.ids import new_id
from app.settings import Settings
from worker.metrics import WorkerMetrics


@dataclass
class WorkerProcess:
    settings: Settings
    db: Database
    blobs: Blobs
    celery: Celery
    id: str = field(default_factory=lambda: new_id("worker"))
    takes_cuda: bool = False
    """Whether it also claims jobs that need a CUDA device."""
    job_id: str | None = None
    """The job that it runs now."""
    stop_asked: bool = False
    """Set by a signal handler, and polled. A plain attribute: taking an Event's lock inside a handler can deadlock with
    the very thread that was interrupted while it held it."""
    must_end: str | None = None
    """Why it takes no more jobs and ends: its GPU is not to be relied on, or a process of a job can't be ended. Whoever keeps it running
    starts it again, and it looks at its GPU anew."""
    heard_at: float = field(default_factory=time.monotonic)
    """When it last had proof that it consumes: a message, or the end of a job, during which it hears none."""
    knocked_at: float = field(default_factory=time.monotonic)
    """When it last asked for such a proof."""
    first_heartbeat: bool = True
    trying_since: float | None = None
    """When it first tried the heartbeat that has not reached the database yet."""
    back_at: float = -math.inf
    """When that was after so long that leases may have run out, in the database, of workers that could not renew them."""
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)

    def __post_init__(self) -> None:
        self.metrics.busy.set_function(lambda: self.job_id is not None)
        self.metrics.disk_free.set_function(self.free_bytes)
        self.metrics.silent.set_function(lambda: 0.0 if self.job_id else time.monotonic() - self.heard_at)

    def free_bytes(self) -> int:
        """Where the scratch of its jobs lies; 0 where nobody can tell."""
        folder = self.settings.work_dir
        try:
            return shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        except OSError:
            return 0


def open_process(settings: Settings, celery: Celery, takes_cuda: bool) -> WorkerProcess:
    return WorkerProcess(settings, Database(settings.sqlalchemy_url), open_blobs(settings), celery, takes_cuda=takes_cuda)
