"""The job's life cycle at the database, SQLite and PostgreSQL alike: races, fencing, lost workers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from app.artifacts.table import Artifact
from app.database import EMBEDDED_TENANT, Database
from app.errors import Problem
from app.ids import new_id
from app.jobs import events, lifecycle, queries, service
from app.jobs.states import FOLLOWS, TERMINAL, Status
from app.jobs.table import Job

LEASE = timedelta(seconds=30)
LOST = {"most": 3, "backoff": timedelta(0)}


def queue(db: Database, model_id: str) -> str:
    with db.write() as session:
        now = db.now(session)
        job = Job(
            id=new_id("job"), tenant_id=EMBEDDED_TENANT, source_model_id=model_id, method="tgmb_tgkt", request={}, request_digest="",
            status=Status.QUEUED, created_at=now, queued_at=now, updated_at=now,
        )  # fmt: skip
        session.add(job)
    return job.id


def claim(db: Database, worker: str = "worker_a", lease: timedelta = LEASE) -> lifecycle.Claim | None:
    with db.write() as session:
        return lifecycle.claim_next(session, worker, lease=lease, now=db.now(session))


def look(db: Database, job_id: str) -> Job:
    with db.read() as session:
        job = queries.by_id(session, EMBEDDED_TENANT, job_id)
    assert job is not None
    return job


def call(db: Database, function: Any, *args: Any, **kwargs: Any) -> Any:
    with db.write() as session:
        return function(session, *args, now=db.now(session), **kwargs)


ARTIFACT = {"name": "m", "media_type": "x/y", "size": 1, "sha256": "0" * 64, "blob_key": "jobs/m"}


def test_many_workers_claim_each_job_once_and_oldest_first(database: Database, model_id: str) -> None:
    jobs = [queue(database, model_id) for _ in range(12)]
    barrier = threading.Barrier(6)

    def drain(number: int) -> list[str]:
        barrier.wait()
        taken = []
        while (one := claim(database, f"worker_{number}")) is not None:
            taken.append(one.job_id)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(drain, range(6)))
    assert sorted(job for one in taken for job in one) == sorted(jobs)
    assert all(one == sorted(one) for one in taken), "ids sort by time: each worker took the oldest that was left"
    assert {look(database, job).attempt for job in jobs} == {1}


def test_a_stale_attempt_can_write_nothing(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    stale = claim(database, "worker_a", timedelta(seconds=-1))
    assert stale is not None
    assert len(call(database, lifecycle.expire_leases, **LOST)) == 1
    fresh = claim(database, "worker_b")
    assert fresh is not None and fresh.attempt == stale.attempt + 1
    assert call(database, lifecycle.renew, stale, lease=LEASE) is None
    assert call(database, lifecycle.record, stale, progress={"step": 1}) is None
    assert call(database, lifecycle.succeed, stale, result={}, artifacts=[ARTIFACT]) is None
    assert call(database, lifecycle.fail, stale, {"code": "x", "title": "x", "detail": "x"}) is None
    assert call(database, lifecycle.lose, stale, "gone", **LOST) is None
    assert call(database, lifecycle.hand_back, stale) is None
    job = look(database, job_id)
    assert (job.status, job.worker_id, job.progress, job.lost_attempts) == ("running", "worker_b", None, 1)
    with database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Artifact)) == 0
    assert call(database, lifecycle.succeed, fresh, result={}, artifacts=[ARTIFACT]) is not None


def test_an_expired_lease_publishes_nothing_even_if_nobody_has_taken_over(database: Database, model_id: str) -> None:
    queue(database, model_id)
    late = claim(database, lease=timedelta(seconds=-1))
    assert late is not None
    assert call(database, lifecycle.succeed, late, result={}, artifacts=[ARTIFACT]) is None
    assert call(database, lifecycle.renew, late, lease=LEASE) == Status.RUNNING, "nobody took over: it may go on"
    assert call(database, lifecycle.succeed, late, result={}, artifacts=[ARTIFACT]) is not None


def test_a_job_that_loses_its_workers_fails_instead_of_circling(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    for number in (1, 2, 3):
        assert claim(database, lease=timedelta(seconds=-1)) is not None
        call(database, lifecycle.expire_leases, **LOST)
        assert look(database, job_id).lost_attempts == number
    job = look(database, job_id)
    assert job.status == "failed" and job.error is not None and job.error["code"] == "attempts_exhausted"
    assert claim(database) is None


def test_handing_back_is_not_counted_as_lost(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    for _ in range(5):
        held = claim(database)
        assert held is not None
        call(database, lifecycle.hand_back, held)
    job = look(database, job_id)
    assert (job.status, job.attempt, job.lost_attempts) == ("queued", 5, 0)


@pytest.mark.parametrize("end", ["fail", "hand_back", "lose", "finish_cancel"])
def test_a_job_that_was_asked_to_stop_ends_as_cancelled(database: Database, model_id: str, end: str) -> None:
    job_id = queue(database, model_id)
    held = claim(database)
    assert held is not None
    call(database, lifecycle.cancel, EMBEDDED_TENANT, job_id)
    assert call(database, lifecycle.renew, held, lease=LEASE) == Status.CANCELLING
    assert call(database, lifecycle.succeed, held, result={}, artifacts=[ARTIFACT]) is None
    arguments = {"fail": ({"code": "x", "title": "x", "detail": "x"},), "lose": ("gone",)}.get(end, ())
    call(database, getattr(lifecycle, end), held, *arguments, **(LOST if end == "lose" else {}))
    job = look(database, job_id)
    assert job.status == "cancelled" and job.finished_at is not None and job.lease_expires_at is None


def blocked(db: Database) -> None:
    """Returns once somebody waits for a lock of this PostgreSQL database."""
    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    deadline = time.monotonic() + 30
    with db.read() as session:
        while not session.scalar(waiting):
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("change", ["hand_back", "lose", "expire_leases"])
def test_a_job_that_is_queued_again_while_a_client_cancels_it_is_cancelled(
    database: Database, model_id: str, change: str
) -> None:
    """The worker's transaction is open as the cancel comes. SQLite has one that writes at a time."""
    job_id = queue(database, model_id)
    held = claim(database, lease=timedelta(seconds=-1))
    assert held is not None
    arguments = {"hand_back": (held,), "lose": (held, "gone"), "expire_leases": ()}[change]
    with ThreadPoolExecutor(1) as pool:
        with database.write() as session:
            getattr(lifecycle, change)(session, *arguments, **({} if change == "hand_back" else LOST), now=database.now(session))
            answer = pool.submit(service.cancel, database, EMBEDDED_TENANT, job_id)
            blocked(database)
        assert answer.result(30).status == "cancelled"
    assert claim(database) is None, "it does not run again"


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_job_that_ends_while_a_client_cancels_it_is_over(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    held = claim(database)
    assert held is not None
    with ThreadPoolExecutor(1) as pool:
        with database.write() as session:
            lifecycle.succeed(session, held, result={}, artifacts=[ARTIFACT], now=database.now(session))
            answer = pool.submit(service.cancel, database, EMBEDDED_TENANT, job_id)
            blocked(database)
        with pytest.raises(Problem, match="job_finished"):
            answer.result(30)


def test_a_cancelled_job_whose_worker_fell_silent_is_cancelled(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    claim(database, lease=timedelta(seconds=-1))
    call(database, lifecycle.cancel, EMBEDDED_TENANT, job_id)
    call(database, lifecycle.expire_leases, **LOST)
    assert look(database, job_id).status == "cancelled"


def test_two_passes_at_once_expire_a_lease_once(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    claim(database, lease=timedelta(seconds=-1))
    with ThreadPoolExecutor(4) as pool:
        changed = list(pool.map(lambda _: call(database, lifecycle.expire_leases, **LOST), range(4)))
    assert sum(len(one) for one in changed) == 1
    assert look(database, job_id).lost_attempts == 1


def test_events_are_numbered_without_gaps_under_contention(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    job = look(database, job_id)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: call(database, events.append, job, "log", f"line {n}\0"), range(40)))
    with database.read() as session:
        found = queries.events_after(session, EMBEDDED_TENANT, job_id, after=0, limit=100)
    assert [event.seq for event in found] == list(range(1, 41))


def test_a_lost_attempt_is_followed_by_the_next_after_longer_and_longer(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    behind = queue(database, model_id)
    for seconds in (60, 120):
        lost = claim(database)
        assert lost is not None and lost.job_id == job_id
        job = call(database, lifecycle.lose, lost, "gone", most=5, backoff=timedelta(seconds=60))
        assert (job.not_before - job.updated_at).total_seconds() == seconds
        with database.write() as session:
            now = database.now(session)
            early = lifecycle.claim_next(session, "worker_b", lease=LEASE, now=now)
            assert early is None or early.job_id == behind, "the others do not wait behind it"
            assert lifecycle.claim_next(session, "worker_b", lease=LEASE, now=now + timedelta(seconds=seconds - 5)) is None
            session.execute(sa.update(Job).where(Job.id == job_id).values(not_before=now))
    held = claim(database)
    assert held is not None and call(database, lifecycle.hand_back, held).not_before is None


@pytest.mark.parametrize("given", [60, 3600])
def test_a_job_that_is_lost_again_and_again_waits_for_ten_minutes_at_most_or_as_long_as_was_asked_for(
    database: Database, model_id: str, given: int
) -> None:
    job_id = queue(database, model_id)
    with database.write() as session:
        session.execute(sa.update(Job).where(Job.id == job_id).values(lost_attempts=5000))
    lost = claim(database)
    assert lost is not None
    job = call(database, lifecycle.lose, lost, "gone", most=10_000, backoff=timedelta(seconds=given))
    assert (job.not_before - job.updated_at).total_seconds() == max(given, 600)


def test_a_job_from_before_workers_differed_waits_for_its_device_when_it_is_retried(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    with database.write() as session:
        session.execute(sa.update(Job).where(Job.id == job_id).values(request={"device": "cuda"}))
    assert claim(database) is not None
    assert call(database, lifecycle.cancel, EMBEDDED_TENANT, job_id) is not None
    with database.write() as session:
        session.execute(sa.update(Job).where(Job.id == job_id).values(status="cancelled", lease_expires_at=None, worker_id=None))
    assert not look(database, job_id).needs_cuda
    assert call(database, lifecycle.retry, EMBEDDED_TENANT, job_id).needs_cuda


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_client_may_have_a_job_tried_again(database: Database, model_id: str, end: str) -> None:
    job_id = queue(database, model_id)
    first = claim(database)
    assert first is not None
    assert call(database, lifecycle.retry, EMBEDDED_TENANT, job_id) is None, "it still runs"
    call(database, lifecycle.record, first, progress={"step": 1})
    if end == "fail":
        call(database, lifecycle.fail, first, {"code": "x", "title": "x", "detail": "x"})
    else:
        call(database, lifecycle.cancel, EMBEDDED_TENANT, job_id)
        call(database, lifecycle.finish_cancel, first)
    assert call(database, lifecycle.retry, "tenant_other", job_id) is None
    job = call(database, lifecycle.retry, EMBEDDED_TENANT, job_id)
    assert (job.status, job.error, job.finished_at, job.progress, job.lost_attempts) == ("queued", None, None, None, 0)
    second = claim(database)
    assert second is not None and second.attempt == 2
    assert call(database, lifecycle.succeed, first, result={}, artifacts=[ARTIFACT]) is None, "the first is fenced off"
    assert call(database, lifecycle.succeed, second, result={}, artifacts=[ARTIFACT]) is not None
    assert call(database, lifecycle.retry, EMBEDDED_TENANT, job_id) is None, "a published model stands"


def test_of_two_who_retry_at_once_one_does(database: Database, model_id: str) -> None:
    job_id = queue(database, model_id)
    call(database, lifecycle.cancel, EMBEDDED_TENANT, job_id)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: call(database, lifecycle.retry, EMBEDDED_TENANT, job_id), range(4)))
    assert sum(job is not None for job in done) == 1


def test_terminal_states_change_by_retry_alone(database: Database, model_id: str) -> None:
    assert {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED} == TERMINAL
    assert FOLLOWS[Status.SUCCEEDED] == frozenset()
    assert FOLLOWS[Status.FAILED] == FOLLOWS[Status.CANCELLED] == {Status.QUEUED}
    job_id = queue(database, model_id)
    call(database, lifecycle.cancel, EMBEDDED_TENANT, job_id)
    assert call(database, lifecycle.cancel, EMBEDDED_TENANT, job_id) is None
    assert claim(database) is None
    with pytest.raises(AssertionError, match="no transition"):
        call(database, lifecycle._change, job_id, Status.CANCELLED, status=Status.RUNNING)
