"""Each invariant that a query watches, broken by hand in SQL, and seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.blobs import LocalBlobs
from app.broker import make_celery
from app.database import EMBEDDED_TENANT, Database, Tenant
from app.datasets.table import Dataset
from app.ids import new_id
from app.jobs import events, lifecycle
from app.jobs.states import Status
from app.jobs.table import Job, JobDataset, JobEvent, JobLabel, Worker
from app.settings import Settings
from app.source_models.table import SourceModel
from worker import housekeeping, invariants
from worker.process import WorkerProcess

HOUR = timedelta(hours=1)
LEASE = timedelta(seconds=30)


@pytest.fixture
def worker(database: Database, tmp_path: Path) -> WorkerProcess:
    settings = Settings(data_dir=tmp_path)
    return WorkerProcess(settings, database, LocalBlobs(settings.blob_dir), make_celery(settings))


@pytest.fixture
def jobs(database: Database) -> dict[str, str]:
    """A job in each state, by the code that brings jobs there; each worker has one at most. All is well with them."""
    made = {}
    with database.write() as session:
        now = database.now(session)
        model = SourceModel(
            id=new_id("model"), tenant_id=EMBEDDED_TENANT, sha256="0" * 64, fingerprint="0" * 64, size=1, format="safetensors",
            description={}, blob_key="k", created_at=now,
        )  # fmt: skip
        session.add(model)
        session.flush()
        for name in ("succeeded", "failed", "cancelled", "cancelling", "running", "another", "queued"):
            job = Job(
                id=new_id("job"), tenant_id=EMBEDDED_TENANT, source_model_id=model.id, method="tgmb_tgkt", request={},
                request_digest="", status=Status.QUEUED, created_at=now, queued_at=now, updated_at=now, idempotency_key=name,
            )  # fmt: skip
            session.add(job)
            session.flush()
            session.add(JobLabel(job_id=job.id, tenant_id=EMBEDDED_TENANT, key="team", value="robots"))
            events.append(session, job, "state", "queued", {"status": "queued"}, now=now)
            made[name] = job.id
            if name == "queued":
                continue
            claim = lifecycle.claim_next(session, f"worker_{name}", lease=LEASE, now=now)
            if name == "succeeded":
                file = {"name": "m", "media_type": "x/y", "size": 1, "sha256": "0" * 64, "blob_key": "jobs/m"}
                lifecycle.succeed(session, claim, result={"verdict": "deploy"}, artifacts=[file], now=now)
            if name == "failed":
                lifecycle.fail(session, claim, {"code": "x", "title": "x", "detail": "x"}, now=now)
            if name in ("cancelled", "cancelling"):
                lifecycle.cancel(session, EMBEDDED_TENANT, job.id, now=now)
            if name == "cancelled":
                lifecycle.finish_cancel(session, claim, now=now)
    return made


def gauges(worker: WorkerProcess) -> dict[str, float | None]:
    housekeeping.watch_invariants(worker)
    name = "modalbridge_invariant_violations"
    return {one: worker.metrics.registry.get_sample_value(name, {"invariant": one}) for one in invariants.INVARIANTS}


def job(job_id: str, **values: Any) -> sa.Update:
    return sa.update(Job).where(Job.id == job_id).values(**values)


Break = Callable[[Session, dict[str, str], Any], Iterator[Any]]
BREAKS: dict[str, tuple[int, Break]] = {}


def breaks(number: int) -> Callable[[Break], Break]:
    """A function that yields the statements which break the invariant of its name, this many times."""

    def known(statements: Break) -> Break:
        BREAKS[statements.__name__] = number, statements
        return statements

    return known


@breaks(2)
def expired_lease_left(session, jobs, now):
    yield job(jobs["running"], lease_expires_at=now - HOUR)
    yield job(jobs["cancelling"], lease_expires_at=now - HOUR)


@breaks(1)
def worker_with_two_jobs(session, jobs, now):
    yield job(jobs["another"], worker_id="worker_running")


@breaks(2)
def holder_disagrees_with_state(session, jobs, now):
    yield job(jobs["running"], worker_id=None)
    yield job(jobs["succeeded"], worker_id="worker_x")


@breaks(2)
def finish_disagrees_with_state(session, jobs, now):
    yield job(jobs["failed"], finished_at=None)
    yield job(jobs["running"], finished_at=now)


@breaks(2)
def lost_too_often(session, jobs, now):
    yield job(jobs["queued"], lost_attempts=3)
    yield job(jobs["running"], lost_attempts=4)


@breaks(1)
def cancelling_for_too_long(session, jobs, now):
    yield sa.update(JobEvent).where(JobEvent.job_id == jobs["cancelling"]).values(at=now - HOUR)


@breaks(2)
def succeeded_without_model(session, jobs, now):
    yield job(jobs["succeeded"], result=sa.null())
    yield job(jobs["failed"], status="succeeded")


@breaks(2)
def artifact_of_another_attempt(session, jobs, now):
    values = {"name": "m", "tenant_id": EMBEDDED_TENANT, "attempt": 1, "media_type": "x/y", "size": 1, "sha256": "0" * 64}
    yield sa.insert(Artifact).values(job_id=jobs["failed"], blob_key="jobs/n", created_at=now, **values)
    yield sa.update(Artifact).where(Artifact.job_id == jobs["succeeded"]).values(attempt=7)


@breaks(1)
def queued_beside_idle_worker(session, jobs, now):
    yield job(jobs["queued"], updated_at=now - HOUR)
    yield job(jobs["failed"], status="queued", finished_at=None, needs_cuda=True, updated_at=now - HOUR)  # for none of these
    for name, values in {
        "idle": {},
        "idle_too": {},
        "busy": {"job_id": "job_x"},
    }.items():
        row = {"job_id": None, "host": "here", "pid": 1, "started_at": now - HOUR, "last_seen_at": now} | values
        yield sa.insert(Worker).values(id=f"worker_{name}", **row)


@breaks(4)
def row_of_another_tenant(session, jobs, now):
    yield sa.insert(Tenant).values(id="tenant_b", created_at=now)
    values = {"sha256": "", "fingerprint": "", "size": 1, "format": "torch", "description": {}, "blob_key": "b"}
    yield sa.insert(SourceModel).values(id="model_b", tenant_id="tenant_b", created_at=now, **values)
    yield job(jobs["queued"], source_model_id="model_b")
    of_b = {"sha256": "", "size": 1, "format": "zip", "images": 8, "unpacked_bytes": 1, "blob_key": "d", "listing_key": "l"}
    yield sa.insert(Dataset).values(id="dataset_b", tenant_id="tenant_b", listing_size=1, created_at=now, **of_b)
    yield sa.insert(JobDataset).values(job_id=jobs["failed"], dataset_id="dataset_b")
    yield sa.update(Artifact).values(tenant_id="tenant_b")
    yield sa.update(JobLabel).where(JobLabel.job_id == jobs["running"]).values(tenant_id="tenant_b")


@breaks(4)
def gap_in_events(session, jobs, now):
    def first_of(name):
        return JobEvent.job_id == jobs[name], JobEvent.seq == 1

    yield sa.delete(JobEvent).where(*first_of("running"))
    yield job(jobs["queued"], last_event=2)
    yield sa.delete(JobEvent).where(JobEvent.job_id == jobs["failed"])
    yield sa.update(JobEvent).where(*first_of("succeeded")).values(seq=0)


def test_all_is_well_with_jobs_that_the_code_has_made(worker: WorkerProcess, jobs: dict[str, str]):
    assert gauges(worker) == dict.fromkeys(invariants.INVARIANTS, 0)


@pytest.mark.parametrize("name", invariants.INVARIANTS)
def test_one_that_is_broken_is_seen_and_named_and_no_other(
    worker: WorkerProcess, jobs: dict[str, str], name: str, capsys: pytest.CaptureFixture[str]
):
    number, statements = BREAKS[name]
    with worker.db.write() as session:
        for statement in statements(session, jobs, worker.db.now(session)):
            assert session.execute(statement).rowcount != 0
    assert {one: found for one, found in gauges(worker).items() if found} == {name: number}
    logged = capsys.readouterr().out
    assert "an invariant is violated" in logged and name in logged


def test_what_is_made_good_in_time_is_no_violation(worker: WorkerProcess, jobs: dict[str, str]):
    with worker.db.write() as session:
        now = worker.db.now(session)
        session.execute(job(jobs["running"], lease_expires_at=now - timedelta(seconds=5)))
        session.execute(job(jobs["queued"], updated_at=now - HOUR, queued_at=now - HOUR))
        for name, started, seen in (("new", now, now), ("silent", now - HOUR, now - HOUR)):
            session.add(Worker(id=f"worker_{name}", host="here", pid=1, started_at=started, last_seen_at=seen))
    assert set(gauges(worker).values()) == {0}, "housekeeping will see to the lease, and no worker has been idle for long"


def test_what_constraints_keep_out_needs_no_query(worker: WorkerProcess, jobs: dict[str, str]):
    for statement in (
        job(jobs["queued"], idempotency_key="running"),
        job(jobs["succeeded"], lease_expires_at=sa.func.now()),
        job(jobs["running"], lease_expires_at=None),
        job(jobs["queued"], status="lost"),
    ):
        with pytest.raises(IntegrityError), worker.db.write() as session:
            session.execute(statement)


def test_no_number_is_left_standing_where_the_database_cannot_be_asked(worker: WorkerProcess, jobs: dict[str, str]):
    gauges(worker)
    with worker.db.write() as session:
        session.execute(sa.text("ALTER TABLE job_events RENAME TO gone"))
    housekeeping._attempt(housekeeping.watch_invariants, worker)
    labels = {"invariant": "worker_with_two_jobs"}
    assert worker.metrics.registry.get_sample_value("modalbridge_invariant_violations", labels) is None
    failed = worker.metrics.registry.get_sample_value(
        "modalbridge_worker_housekeeping_failures_total", {"part": "watch_invariants"}
    )
    assert failed == 1
