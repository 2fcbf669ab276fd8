"""Who gets which job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from app.jobs.table import Worker
from tests.worker.embedded import QUICK, Embedded
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


def test_it_goes_on_until_nothing_is_queued(embedded: Embedded):
    jobs = [embedded.submit(wake=False, seed=n, **QUICK) for n in range(2)]
    worker = embedded.process()
    assert drain(worker) == 2
    assert [embedded.job(job_id).status for job_id in jobs] == ["succeeded"] * 2
    assert drain(worker) == 0, "and the next message finds nothing to do"
    assert worker.job_id is None


def test_a_worker_that_is_to_stop_takes_nothing(embedded: Embedded):
    job_id = embedded.submit(wake=False)
    worker = embedded.process()
    worker.stop_asked = True
    assert drain(worker) == 0
    assert embedded.job(job_id).status == "queued"
