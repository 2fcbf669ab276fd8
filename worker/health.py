"""python -m worker.health: ends with 0 if a worker of this host was heard from lately, else says why not. A container's
health check: the host is the container then, and it has one worker."""

from __future__ import annotations

import socket
from datetime import timedelta

from app.database import Database
from app.jobs import queries
from app.settings import Settings


def check(settings: Settings) -> None:
    """Raises RuntimeError if no worker of this host has been heard from, and whatever the database raises."""
    db, silent_s = Database(settings.sqlalchemy_url), settings.worker_silent_s
    try:
        with db.read() as session:
            seen = queries.workers_seen_since(session, db.now(session) - timedelta(seconds=silent_s))
    finally:
        db.dispose()
    if not any(worker.host == socket.gethostname() for worker in seen):
        raise RuntimeError(f"no worker of {socket.gethostname()} was heard from in the last {silent_s:g} s")


if __name__ == "__main__":
    try:
        check(Settings())
    except Exception as error:  # whatever it is, it is what the check has to say
        raise SystemExit(f"{type(error).__name__}: {error}") from error
