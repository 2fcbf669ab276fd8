"""An attempt whose disk is full, or whose database is away."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.database import EMBEDDED_TENANT
from app.jobs import service
from app.jobs.table import Job
from tests.conftest import POSTGRES
from tests.servers import Disk
from tests.worker.conftest import embedded_in
from tests.worker.embedded import ENDLESS, OUTLASTING, QUICK, TOO_SMALL, Embedded, assert_it_went_on, began, child_of, meanwhile
from worker import supervisor, workspace
from worker.draining import claim_next, drain


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")
def test_a_disk_that_fills_up_while_the_process_works_is_told_though_nothing_can_be_printed(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    disk, worker = Disk(embedded.settings.work_dir), embedded.process()

    def fill() -> None:
        embedded.until_event(job_id, "checkpoint")
        disk.be_full(10, lambda: embedded.job(job_id).status == "running")

    with disk.mounted():
        with meanwhile(fill):
            assert supervisor.run(worker, claim_next(worker)).status == "queued"
        assert "disk is full" in embedded.events(job_id, "state")[-1].message
        (left,) = (path for path in (embedded.settings.work_dir / job_id).rglob("*") if path.is_file())
        assert left.name == "checkpoint.pt", "room is made, and the next attempt goes on from where this one was"
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)


def test_a_file_that_outgrows_its_limit_is_a_full_disk_on_which_nothing_of_the_attempt_stays(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process(child_file_bytes=50_000, max_lost_attempts=2)
    for expected in ("queued", "failed"):
        assert supervisor.run(worker, claim_next(worker)).status == expected
        assert list(workspace.jobs_here(embedded.settings.work_dir)) == []
    assert embedded.job(job_id).error["code"] == "disk_full"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")
def test_a_worker_whose_disk_is_full_costs_a_job_attempts_and_no_more_than_it_may_lose(embedded: Embedded):
    kept, given_up = (embedded.submit(wake=False, seed=n, **QUICK) for n in range(2))
    folder = embedded.settings.work_dir
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "tmpfs", str(folder)], check=True)
    try:
        worker = embedded.process(lost_backoff_s=60)
        assert supervisor.run(worker, claim_next(worker)).status == "queued"
        drain(embedded.process())  # the other one, again and again
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    job = embedded.job(kept)
    assert (job.status, job.lost_attempts) == ("queued", 1) and "disk is full" in embedded.events(kept, "state")[-1].message
    job = embedded.job(given_up)
    assert (job.status, job.error["code"], job.lost_attempts) == ("failed", "disk_full", 3)
    with embedded.db.write() as session:
        session.execute(sa.update(Job).values(not_before=None))
    drain(embedded.process(**TOO_SMALL))
    assert began(embedded, kept)


@pytest.mark.postgres
def test_the_database_goes_away_for_a_while_and_the_job_goes_on(
    tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path
):
    url = new_database_url("postgres")
    name = sa.make_url(url).database
    administration = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def connections(allowed: bool) -> None:
        with administration.connect() as connection:
            connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {str(allowed).lower()}'))
            if not allowed:
                ours = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
                connection.execute(ours, {"name": name})

    with embedded_in(tmp_path, url, small_data) as embedded:
        job_id = embedded.submit(wake=False, **OUTLASTING)

        def interrupt() -> None:
            embedded.until_event(job_id, "phase", words="bridging")
            number = child_of(embedded, job_id, 1)
            connections(False)
            time.sleep(4)  # longer than the lease, and than a tick by far
            connections(True)
            assert number

        worker = embedded.process()
        with meanwhile(interrupt):
            drain(worker)
        assert_it_went_on(embedded, job_id, worker)
    administration.dispose()
