"""This worker process: who it is, what it holds open, what it is doing, and whether it is to stop."""

from __future__ import annotations

from dataclasses import dataclass, field

from celery import Celery

from app.blobs import Blobs, open_blobs
from app.database import Database
from app.ids import new_id
from app.settings import Settings


@dataclass
class WorkerProcess:
    settings: Settings
    db: Database
    blobs: Blobs
    celery: Celery
    id: str = field(default_factory=lambda: new_id("worker"))
    job_id: str | None = None
    """The job that it runs now."""
    stop_asked: bool = False
    """Set by a signal handler, and polled. A plain attribute: taking an Event's lock inside a handler can deadlock with
    the very thread that was interrupted while it held it."""


def open_process(settings: Settings, celery: Celery) -> WorkerProcess:
    return WorkerProcess(settings, Database(settings.sqlalchemy_url), open_blobs(settings), celery)
