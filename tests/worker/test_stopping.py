"""An attempt that is cut short: cancelled, handed back, killed, or no longer its worker's."""

from __future__ import annotations

import os
import signal
import time

import sqlalchemy as sa

from app.database import EMBEDDED_TENANT
from app.jobs import service
from app.jobs.table import Job
from tests.worker.embedded import ENDLESS, Embedded, child_of, counted, gone, meanwhile, wait_for
from worker import leftovers, supervisor, workspace
from worker.draining import claim_next, drain


def test_a_cancelled_job_is_stopped_and_publishes_nothing(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)

    def cancel() -> None:
        embedded.until_event(job_id, "phase", words="bridging")
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
        assert embedded.job(job_id).status in ("cancelling", "cancelled")

    with meanwhile(cancel):
        drain(embedded.process())
    job = embedded.job(job_id)
    assert job.status == "cancelled"
    assert embedded.events(job_id, "log")[-1].message.startswith("stopped at bridging"), "it was asked, not killed"
    assert embedded.kept(job_id) == []


def test_one_that_does_not_hear_is_killed_after_the_grace(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)

    def cancel() -> None:
        embedded.until_event(job_id, "phase", words="bridging")
        os.kill(child_of(embedded, job_id, 1), signal.SIGSTOP)
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(embedded.process(cancel_grace_s=0.5))
    assert embedded.job(job_id).status == "cancelled"
    assert "stopped at" not in embedded.story(job_id)


def test_a_worker_that_stops_hands_its_job_back(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker = embedded.process()

    def stop() -> None:
        embedded.until_event(job_id, "checkpoint")
        worker.stop_asked = True

    with meanwhile(stop):
        assert drain(worker) == 1
    job = embedded.job(job_id)
    assert (job.status, job.lost_attempts, job.worker_id) == ("queued", 0, None)
    assert "handed back" in embedded.story(job_id)
    assert counted(worker, "attempts", outcome="handed_back", cause="") == 1
    assert list(workspace.jobs_here(worker.settings.work_dir)) == [job_id], "its checkpoint stays for the next attempt"
    service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
    leftovers.remove_work_folders(worker)


def test_a_process_that_is_killed_is_a_lost_attempt_and_three_are_the_end(embedded: Embedded):
    """As the kernel does where memory runs out."""
    job_id = embedded.submit(wake=False, **ENDLESS)

    def kill() -> None:
        for attempt in (1, 2, 3):
            embedded.until_event(job_id, "checkpoint", attempt=attempt)
            os.kill(child_of(embedded, job_id, attempt), signal.SIGKILL)

    worker = embedded.process()
    with meanwhile(kill):
        assert drain(worker) == 3
    job = embedded.job(job_id)
    assert (job.status, job.error["code"], job.lost_attempts, job.attempt) == ("failed", "attempts_exhausted", 3, 3)
    assert "SIGKILL" in job.error["detail"]
    resumed = [event.data["resumed_from"] for event in embedded.events(job_id, "started")]
    assert resumed[0] is None and resumed[1] is not None and resumed[2] is not None
    assert resumed[2][1] > resumed[1][1] > 0, "each went on where the last one was"
    assert counted(worker, "attempts", outcome="lost", cause="SIGKILL") == 3
    assert counted(worker, "child_exits", cause="SIGKILL") == 3


def test_an_attempt_that_has_lost_its_lease_writes_nothing_more(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker = embedded.process()
    claim = claim_next(worker)

    def take_over() -> None:
        embedded.until_event(job_id, "checkpoint")
        number = child_of(embedded, job_id, 1)
        with embedded.db.write() as session:
            session.execute(sa.update(Job).where(Job.id == job_id).values(attempt=2, worker_id="worker_other"))
        wait_for(lambda: gone(number), "the death of the stale process", 5)

    with meanwhile(take_over):
        assert supervisor.run(worker, claim) is None
    assert counted(worker, "attempts", outcome="lost", cause="lease") == 1
    story = embedded.story(job_id)
    time.sleep(0.2)
    assert embedded.story(job_id) == story
    job = embedded.job(job_id)
    assert (job.status, job.attempt, job.worker_id) == ("running", 2, "worker_other")
    assert embedded.kept(job_id) == []
