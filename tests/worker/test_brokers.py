"""Brokers that are servers, and what happens when they go away. The Redis server is the test's own, with the
configuration of the production set-up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from kombu import Connection
from kombu.exceptions import OperationalError

from app import broker
from app.broker import QUEUE, make_celery
from app.database import EMBEDDED_TENANT
from app.jobs import service
from app.jobs.table import Worker
from tests.servers import Redis
from tests.worker.embedded import ENDLESS, Embedded, wait_for

RABBITMQ = os.environ.get("MODALBRIDGE_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")
SOON_S = 15.0
"""A worker has heard of a job by then: a reconnection, a pass of housekeeping, and the job itself."""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def rabbitmq() -> Iterator[str]:
    """Its URL; what the service declares there is removed."""
    yield RABBITMQ
    with Connection(RABBITMQ) as connection, connection.channel() as channel:
        channel.queue_delete(QUEUE)
        channel.exchange_delete(QUEUE)


def over(embedded: Embedded, url: str) -> Embedded:
    """The same, with another broker."""
    embedded.settings = embedded.settings.model_copy(update={"broker_url": url})
    return embedded


def until_a_worker_is_known(embedded: Embedded) -> None:
    def known() -> int:
        with embedded.db.read() as session:
            return session.scalar(sa.select(sa.func.count(Worker.id)))

    wait_for(known, "the worker's row")


def runs_soon(embedded: Embedded) -> None:
    job_id = embedded.submit(**ENDLESS)
    embedded.until(job_id, "running", seconds=SOON_S)
    service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
    embedded.until(job_id, "cancelled")


@pytest.mark.rabbitmq
def test_rabbitmq_carries_wake_ups_as_well_and_expects_no_heartbeats_of_a_busy_worker(embedded: Embedded, rabbitmq: str):
    over(embedded, rabbitmq)
    celery = make_celery(embedded.settings)
    broker.reachable(celery)
    with celery.connection_for_read() as connection:
        assert connection.connect().heartbeat == 0, "as it was agreed on with the server"
    with embedded.worker():
        until_a_worker_is_known(embedded)
        runs_soon(embedded)


@pytest.mark.redis
def test_a_worker_hears_again_when_redis_was_killed_and_is_back(embedded: Embedded, redis: Redis):
    over(embedded, redis.url)
    with embedded.worker():
        until_a_worker_is_known(embedded)
        runs_soon(embedded)
        redis.kill()
        time.sleep(1)
        redis.start()
        runs_soon(embedded)


@pytest.mark.redis
def test_a_worker_stops_though_redis_is_gone(embedded: Embedded, redis: Redis):
    over(embedded, redis.url)
    with embedded.worker() as worker:
        until_a_worker_is_known(embedded)
        redis.kill()
        time.sleep(1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        redis.start()


@pytest.mark.redis
def test_a_redis_that_does_not_answer_keeps_neither_a_request_nor_the_heartbeat_waiting(embedded: Embedded, redis: Redis):
    def last_seen() -> datetime:
        with embedded.db.read() as session:
            return session.scalar(sa.select(Worker.last_seen_at))

    over(embedded, redis.url)
    celery = make_celery(embedded.settings)
    broker.reachable(celery)
    with embedded.worker():
        until_a_worker_is_known(embedded)
        redis.signal(signal.SIGSTOP)
        jobs = [embedded.submit(wake=False, seed=n, **ENDLESS) for n in range(3)]
        began = time.monotonic()
        assert not broker.wake(celery, jobs[0])
        with pytest.raises(OperationalError):
            broker.reachable(celery)
        assert time.monotonic() - began < 15
        frozen = last_seen()
        wait_for(lambda: last_seen() > frozen, "a heartbeat", 15)
        redis.signal(signal.SIGCONT)
        embedded.until(jobs[0], "running", seconds=2 * SOON_S)
        for job_id in reversed(jobs):
            service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
        embedded.until(jobs[0], "cancelled")
