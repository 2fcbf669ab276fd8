"""Ways of breaking a stack. Each takes the stack and a source of randomness, and leaves what it broke running again."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress

import sqlalchemy as sa

from app import broker
from app.jobs.states import Status
from app.jobs.table import Job
from tests.chaos.stack import Stack

Fault = Callable[[Stack, random.Random], None]


def worker_killed(stack: Stack, rng: random.Random) -> None:
    stack.restart(rng.choice(stack.workers))


def both_workers_killed(stack: Stack, rng: random.Random) -> None:
    for name in stack.workers:
        stack.kill(name)
    for name in stack.workers:
        stack.start(name)


def worker_asked_to_stop(stack: Stack, rng: random.Random) -> None:
    name = rng.choice(stack.workers)
    stack.processes[name].send_signal(signal.SIGTERM)
    time.sleep(rng.uniform(0, 3))  # it may or may not have come to its end
    stack.restart(name)


def job_process_killed(stack: Stack, rng: random.Random) -> None:
    for pid in stack.children()[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def front_end_killed(stack: Stack, rng: random.Random) -> None:
    stack.restart("front end")


def _stopped(pids: list[int], seconds: float) -> None:
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(seconds)


def worker_sleeps_through_its_lease(stack: Stack, rng: random.Random) -> None:
    """With its job's process, so that both come back as a stale attempt."""
    _stopped(stack.pids(rng.choice(stack.workers)), rng.uniform(1.2, 2) * stack.settings.lease_s)


def worker_alone_sleeps_through_its_lease(stack: Stack, rng: random.Random) -> None:
    """Its job's process goes on, and may be done before the lease is lost."""
    _stopped(stack.pids(rng.choice(stack.workers))[:1], rng.uniform(1.2, 2) * stack.settings.lease_s)


def job_process_stopped(stack: Stack, rng: random.Random) -> None:
    _stopped(stack.children(), rng.uniform(0.5, 2))


def front_end_stopped(stack: Stack, rng: random.Random) -> None:
    _stopped(stack.pids("front end"), rng.uniform(0.5, 2))


def broker_emptied(stack: Stack, rng: random.Random) -> None:
    stack.empty_broker()


def message_doubled(stack: Stack, rng: random.Random) -> None:
    """Five times the wake-up of every job that is not over."""
    with stack.db.read() as session:
        jobs = session.scalars(sa.select(Job.id).where(Job.status.in_([Status.QUEUED, Status.RUNNING]))).all()
    celery = stack.celery()
    for job_id in 5 * list(jobs):
        broker.wake(celery, job_id)


def broker_killed(stack: Stack, rng: random.Random) -> None:
    """It keeps nothing: what waited is lost, and every connection."""
    stack.redis.kill()
    time.sleep(rng.uniform(0, 3))
    stack.redis.start()


def connections_cut(stack: Stack, rng: random.Random) -> None:
    """Some in the middle of a transaction."""
    engine = sa.create_engine(stack.db.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        stack.cut_connections(connection)
    engine.dispose()


def database_away(stack: Stack, rng: random.Random) -> None:
    stack.refuse_connections(rng.uniform(0.5, 2) * stack.settings.lease_s)


def database_killed(stack: Stack, rng: random.Random) -> None:
    """The server itself, at once, and it stays away for up to two leases: it comes back by recovering."""
    stack.postgres.crash()
    time.sleep(rng.uniform(0, 2) * stack.settings.lease_s)
    stack.postgres.start()


def disk_full(stack: Stack, rng: random.Random) -> None:
    """Of one process; of all where they share a data folder."""
    disk = stack.disks[rng.choice(list(stack.disks))]
    disk.be_full(rng.uniform(0.5, 2) * stack.settings.lease_s)


def database_locked(stack: Stack, rng: random.Random) -> None:
    """SQLite: somebody else writes, and takes his time."""
    with sqlite3.connect(stack.db.url.database, timeout=30) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(rng.uniform(0.5, 2) * stack.settings.lease_s)
        connection.rollback()
    connection.close()


def store_out_of_order(stack: Stack, rng: random.Random) -> None:
    """The blob store answers 500 to everything."""
    _store(stack, "500", rng.uniform(1, 6))


def store_silent(stack: Stack, rng: random.Random) -> None:
    """It takes requests, and says nothing."""
    _store(stack, "hang", rng.uniform(1, 6))


def _store(stack: Stack, mode: str, seconds: float) -> None:
    stack.bucket.proxy.mode = mode
    time.sleep(seconds)
    stack.bucket.proxy.obey()


EVERYWHERE: tuple[Fault, ...] = (
    worker_killed,
    both_workers_killed,
    worker_asked_to_stop,
    job_process_killed,
    front_end_killed,
    worker_sleeps_through_its_lease,
    worker_alone_sleeps_through_its_lease,
    job_process_stopped,
    front_end_stopped,
    broker_emptied,
    message_doubled,
)
SERVERS: tuple[Fault, ...] = (
    broker_killed,
    connections_cut,
    database_away,
    database_killed,
    store_out_of_order,
    store_silent,
)
SQLITE: tuple[Fault, ...] = (database_locked,)
DISKS: tuple[Fault, ...] = (disk_full,)


def of(stack: Stack) -> list[Fault]:
    """Those that can happen to this stack."""
    return [*EVERYWHERE, *(SERVERS if stack.postgres else SQLITE), *(DISKS if stack.disks else ())]
