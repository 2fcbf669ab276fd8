"""Who gets which job."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.jobs.table import Worker
from tests.worker.embedded import QUICK, ROOT, TOO_SMALL, Embedded, began
from worker import housekeeping
from worker.draining import claim_next, drain


def test_workers_that_race_claim_each_job_once(embedded_both: Embedded):
    jobs = [embedded_both.submit(wake=False, seed=n) for n in range(6)]
    workers = [embedded_both.process(lease_s=60) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        claims = [claim for claim in pool.map(claim_next, workers) if claim is not None]
    # A worker may have found every queued row locked by others; then those rows were taken, and the rest are for later.
    while (claim := claim_next(workers[0])) is not None:
        claims.append(claim)
    assert sorted(claim.job_id for claim in claims) == jobs
    assert all(embedded_both.job(job_id).attempt == 1 for job_id in jobs)


def test_the_oldest_job_is_next_and_the_workers_row_says_so(embedded_both: Embedded):
    first, second = (embedded_both.submit(wake=False, seed=n) for n in range(2))
    worker = embedded_both.process()
    housekeeping.heartbeat(worker)
    assert [claim_next(worker).job_id for _ in range(2)] == [first, second]
    with embedded_both.db.read() as session:
        assert session.get(Worker, worker.id).job_id == second
    assert claim_next(worker) is None
    with embedded_both.db.read() as session:
        assert session.get(Worker, worker.id).job_id is None


def test_a_job_for_cuda_is_left_to_a_worker_that_has_it_and_others_wait_for_neither(embedded_both: Embedded):
    first, second, third = (embedded_both.submit(wake=False, device=device) for device in ("cuda", "auto", "cuda"))
    without, having = embedded_both.process(), embedded_both.process(takes_cuda=True)
    assert claim_next(without).job_id == second
    assert claim_next(without) is None
    assert [claim_next(having).job_id for _ in range(2)] == [first, third]


def test_one_that_waits_for_a_worker_with_cuda_says_so(embedded_both: Embedded):
    def warnings(job_id: str) -> list[str]:
        return [event.data["code"] for event in embedded_both.events(job_id, "warning")]

    housekeeping.heartbeat(embedded_both.process())
    assert warnings(embedded_both.submit(wake=False, device="cuda")) == ["no_cuda_worker"]
    assert warnings(embedded_both.submit(wake=False, device="auto")) == []
    housekeeping.heartbeat(embedded_both.process(takes_cuda=True))
    assert warnings(embedded_both.submit(wake=False, device="cuda", seed=1)) == []


@pytest.mark.acceptance
def test_a_real_worker_hears_of_jobs_for_cuda_if_it_takes_them(embedded: Embedded):
    waiting = embedded.submit(device="cuda", **QUICK)
    with embedded.worker(takes_cuda=False, **TOO_SMALL):
        embedded.until(embedded.submit(**QUICK), "failed")
    assert embedded.job(waiting).status == "queued"
    assert len(list(embedded.settings.broker_dir.rglob("*.jobs.cuda.msg"))) >= 1, "the wake-up is left to another"
    code = "from worker.celery_app import app; print(*(queue.name for queue in app.conf.task_queues))"
    for takes_cuda, heard in ((False, "jobs"), (True, "jobs jobs.cuda")):
        env = embedded.environment(takes_cuda=takes_cuda)
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == heard, done.stderr


def test_it_goes_on_until_nothing_is_queued(embedded: Embedded):
    jobs = [embedded.submit(wake=False, seed=n, **QUICK) for n in range(2)]
    worker = embedded.process(**TOO_SMALL)
    assert drain(worker) == 2
    assert all(began(embedded, job_id) for job_id in jobs)
    assert drain(worker) == 0, "and the next message finds nothing to do"
    assert worker.job_id is None


def test_a_worker_that_is_to_stop_takes_nothing(embedded: Embedded):
    job_id = embedded.submit(wake=False)
    worker = embedded.process()
    worker.stop_asked = True
    assert drain(worker) == 0
    assert embedded.job(job_id).status == "queued"


def test_a_worker_that_is_short_of_room_takes_no_job_until_it_has_some(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process(min_free_bytes=2**62)
    assert drain(worker) == 0 and embedded.job(job_id).status == "queued"
    free = worker.metrics.registry.get_sample_value("modalbridge_worker_disk_free_bytes")
    assert 0 < free < 2**62
    assert drain(embedded.process(**TOO_SMALL)) == 1
    assert began(embedded, job_id)
