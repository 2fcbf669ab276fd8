"""An attempt whose database hangs: it takes what is sent to it, and answers nothing."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import schema
from app.database import Database
from tests.servers import Postgres, postgres
from tests.worker.conftest import embedded_in
from tests.worker.embedded import ENDLESS, OUTLASTING, Embedded, assert_it_went_on, child_of, counted, gone, meanwhile, wait_for
from worker import housekeeping, lease
from worker.draining import drain


@pytest.fixture
def of_its_own(tmp_path: Path, small_data: Path) -> Iterator[tuple[Postgres, Embedded]]:
    """A server that may be frozen."""
    with postgres(tmp_path / "postgres.log") as server:
        db = Database(server.url)
        schema.upgrade(db)
        db.dispose()
        with embedded_in(tmp_path, server.url, small_data) as embedded:
            yield server, embedded


@pytest.mark.postgres
def test_the_database_hangs_for_a_while_and_the_job_goes_on(of_its_own: tuple[Postgres, Embedded]):
    server, embedded = of_its_own
    job_id = embedded.submit(wake=False, **OUTLASTING)
    worker = embedded.process()

    def hang() -> None:
        embedded.until_event(job_id, "phase", words="bridging")
        with server.frozen():
            time.sleep(4)  # longer than the lease

    with meanwhile(hang):
        drain(worker)
    assert_it_went_on(embedded, job_id, worker)


@pytest.mark.postgres
def test_a_worker_that_is_to_stop_does_so_though_the_database_hangs(
    of_its_own: tuple[Postgres, Embedded], monkeypatch: pytest.MonkeyPatch
):
    server, embedded = of_its_own
    monkeypatch.setattr(lease, "ANSWER_S", 1.0)
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker, over = embedded.process(), threading.Event()

    def hang() -> None:
        embedded.until_event(job_id, "checkpoint")
        number = child_of(embedded, job_id, 1)
        with server.frozen():
            time.sleep(2 * lease.TICK_S)
            worker.stop_asked = True
            wait_for(lambda: gone(number), "the end of the job's process", worker.settings.cancel_grace_s)
            assert over.wait(10), "the worker does not wait for the database"

    with meanwhile(hang):
        drain(worker)
        over.set()
    assert embedded.job(job_id).status == "running"
    assert counted(worker, "attempts", outcome="lost", cause="database_away") == 1
    wait_for(lambda: housekeeping.expire_leases(worker) or embedded.job(job_id).status == "queued", "the end of the lease", 10)


@pytest.mark.postgres
def test_an_idle_worker_that_is_to_stop_does_so_though_the_database_hangs(
    of_its_own: tuple[Postgres, Embedded], monkeypatch: pytest.MonkeyPatch
):
    server, embedded = of_its_own
    monkeypatch.setattr(lease, "ANSWER_S", 1.0)
    worker, frozen, over = embedded.process(), threading.Event(), threading.Event()
    assert drain(worker) == 0, "its connection is in the pool now"

    def hang() -> None:
        with server.frozen():
            frozen.set()
            time.sleep(2 * lease.TICK_S)
            worker.stop_asked = True
            assert over.wait(10), "it does not wait for the database"

    with meanwhile(hang):
        assert frozen.wait(10)
        assert drain(worker) == 0
        over.set()


@pytest.mark.postgres
@pytest.mark.acceptance
def test_a_real_worker_ends_though_the_database_hangs(of_its_own: tuple[Postgres, Embedded]):
    server, embedded = of_its_own
    with embedded.worker() as running:
        job_id = embedded.submit(**ENDLESS)
        embedded.until_event(job_id, "checkpoint")
        with server.frozen():
            running.send_signal(signal.SIGTERM)
            limit = embedded.settings.cancel_grace_s + lease.ANSWER_S + 3 * housekeeping.LEAVE_S
            assert running.wait(limit + 5) == 0
