"""Each part over both databases; what it must do, and what it must leave alone."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from app import broker
from app.broker import make_celery
from app.jobs import queries
from app.jobs.table import Job, Worker
from tests.servers import Disk
from tests.worker.embedded import Embedded, wait_for
from worker import housekeeping, leftovers
from worker.draining import claim_next
from worker.process import WorkerProcess


def messages(embedded: Embedded) -> int:
    return len(list((embedded.settings.broker_dir / "messages").glob("*.msg")))


def workers(embedded: Embedded) -> list[Worker]:
    with embedded.db.read() as session:
        return list(session.scalars(sa.select(Worker).order_by(Worker.id)))


def expire(embedded: Embedded, job_id: str) -> None:
    with embedded.db.write() as session:
        long_ago = embedded.db.now(session) - timedelta(hours=1)
        session.execute(sa.update(Job).where(Job.id == job_id).values(lease_expires_at=long_ago))


def test_a_heartbeat_makes_the_row_and_renews_it(embedded_both: Embedded):
    worker = embedded_both.process()
    housekeeping.heartbeat(worker)
    (first,) = workers(embedded_both)
    assert (first.id, first.pid, first.job_id) == (worker.id, os.getpid(), None)
    worker.job_id = "job_x"
    housekeeping.heartbeat(worker)
    (second,) = workers(embedded_both)
    assert second.last_seen_at > first.last_seen_at
    assert second.started_at == first.started_at
    assert second.job_id == "job_x"
    housekeeping.leave(worker)
    assert workers(embedded_both) == []


def test_silent_workers_are_forgotten_after_a_day(embedded_both: Embedded):
    old, new = embedded_both.process(), embedded_both.process()
    housekeeping.heartbeat(old)
    housekeeping.heartbeat(new)
    with embedded_both.db.write() as session:
        seen = embedded_both.db.now(session) - timedelta(hours=25)
        session.execute(sa.update(Worker).where(Worker.id == old.id).values(last_seen_at=seen))
        assert [worker.id for worker in queries.workers_seen_since(session, seen + timedelta(hours=24))] == [new.id]
    leftovers.remove_silent_rows(new)
    assert [worker.id for worker in workers(embedded_both)] == [new.id]


def test_a_silent_workers_job_is_queued_again_and_after_three_times_failed(embedded_both: Embedded):
    job_id = embedded_both.submit(wake=False)
    worker = embedded_both.process()
    for lost in (1, 2):
        assert claim_next(worker) is not None
        housekeeping.expire_leases(worker)
        assert embedded_both.job(job_id).status == "running", "its lease has not run out"
        expire(embedded_both, job_id)
        threads = [threading.Thread(target=housekeeping.expire_leases, args=(worker,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (embedded_both.job(job_id).status, embedded_both.job(job_id).lost_attempts) == ("queued", lost), "once each"
    assert claim_next(worker) is not None
    expire(embedded_both, job_id)
    with capture_logs() as lines:
        housekeeping.expire_leases(embedded_both.process())
    assert [(line["job_id"], line["worker_id"], line["status"]) for line in lines] == [(job_id, worker.id, "failed")]
    job = embedded_both.job(job_id)
    assert (job.status, job.error["code"]) == ("failed", "attempts_exhausted")
    assert worker.id in job.error["detail"]


@pytest.mark.parametrize("began", ["before", "after"])
def test_a_lease_that_ran_out_while_nobody_reached_the_database_is_left_to_its_worker_for_as_long_again(
    embedded_both: Embedded, monkeypatch: pytest.MonkeyPatch, began: str
):
    """Else the first to find it back would take every job from workers that live, and are about to renew. began: the one that looks,
    before it was away or after."""
    job_id = embedded_both.submit(wake=False)
    claim_next(embedded_both.process())
    other = embedded_both.process(lease_s=2, housekeeping_s=0.5)
    housekeeping.look(other)
    if began == "before":
        with monkeypatch.context() as away:
            away.setattr(other.db, "write", raises_away)
            housekeeping.look(other)
            time.sleep(1)
    else:
        with embedded_both.db.write() as session:
            session.execute(sa.update(Worker).values(last_seen_at=embedded_both.db.now(session) - timedelta(seconds=60)))
        other = embedded_both.process(lease_s=2, housekeeping_s=0.5)
    expire(embedded_both, job_id)
    housekeeping.look(other)
    housekeeping.watch_invariants(other)
    assert embedded_both.job(job_id).status == "running"
    violations = other.metrics.registry.get_sample_value
    assert violations("modalbridge_invariant_violations", {"invariant": "expired_lease_left"}) is None, "nor is it judged"
    began_at = time.monotonic()
    while embedded_both.job(job_id).status == "running":
        time.sleep(0.1)
        housekeeping.look(other)
    assert time.monotonic() - began_at < 10


def raises_away() -> None:
    raise OperationalError("select 1", {}, OSError("away"))


def test_a_pass_that_takes_long_is_no_database_that_is_away(embedded_both: Embedded):
    """As where the broker does not answer, which each pass then waits for."""
    job_id = embedded_both.submit(wake=False)
    claim_next(embedded_both.process())
    other = embedded_both.process(lease_s=2, housekeeping_s=0.5)
    housekeeping.look(other)
    time.sleep(1.5)
    expire(embedded_both, job_id)
    housekeeping.look(other)
    assert embedded_both.job(job_id).status == "queued"


def test_queued_jobs_wake_as_many_workers_as_are_idle(embedded_both: Embedded):
    for n in range(3):
        embedded_both.submit(wake=False, seed=n)
    idle, busy, silent = (embedded_both.process() for _ in range(3))
    busy.job_id = "job_x"
    for worker in (idle, busy, silent):
        housekeeping.heartbeat(worker)
    with embedded_both.db.write() as session:
        seen = embedded_both.db.now(session) - timedelta(minutes=5)
        session.execute(sa.update(Worker).where(Worker.id == silent.id).values(last_seen_at=seen))
    housekeeping.wake_idle_workers(busy)
    assert messages(embedded_both) == 1
    idle.job_id = "job_y"
    housekeeping.heartbeat(idle)
    housekeeping.wake_idle_workers(busy)
    assert messages(embedded_both) == 1, "busy workers look by themselves when they are done"


def test_wake_ups_for_cuda_go_to_those_who_have_it(embedded_both: Embedded):
    for n in range(3):
        embedded_both.submit(wake=False, seed=n, device="cuda")
    without, having = embedded_both.process(), embedded_both.process(takes_cuda=True)
    housekeeping.heartbeat(without)
    housekeeping.wake_idle_workers(without)
    assert messages(embedded_both) == 0, "nobody is there who could run one"
    housekeeping.heartbeat(having)
    housekeeping.wake_idle_workers(without)
    (message,) = embedded_both.settings.broker_dir.rglob("*.msg")
    assert message.name.endswith(".jobs.cuda.msg")


def test_without_queued_jobs_nothing_is_sent(embedded: Embedded):
    worker = embedded.process()
    housekeeping.look(worker)
    assert messages(embedded) == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")
def test_a_wake_up_for_which_the_disk_has_no_room_leaves_nothing_half_written(embedded: Embedded):
    disk = Disk(embedded.settings.broker_dir)
    with disk.mounted():
        celery = make_celery(embedded.settings)
        with filling(disk):
            wait_for(lambda: not broker.wake(celery, "none"), "a full disk")
        assert list(embedded.settings.broker_dir.rglob("*.partial")) == []
        assert broker.wake(celery, "none")


@contextmanager
def filling(disk: Disk) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=lambda: disk.be_full(30, lambda: not over.is_set()))
    thread.start()
    yield
    over.set()
    thread.join()


def test_a_part_that_fails_keeps_no_other_from_running(embedded: Embedded, capsys):
    worker = embedded.process()
    job_id = embedded.submit(wake=False)
    assert claim_next(embedded.process()) is not None
    messages_dir = embedded.settings.broker_dir / "messages"
    messages_dir.rmdir()
    messages_dir.write_text("the broker's folder is a file")
    expire(embedded, job_id)
    housekeeping.look(worker)
    assert embedded.job(job_id).status == "queued"
    messages_dir.unlink()
    messages_dir.mkdir()
    housekeeping.look(worker)
    assert messages(embedded) == 1
    assert "wake-up not sent" in capsys.readouterr().out
    name, of = "modalbridge_worker_wake_ups_sent_total", worker.metrics.registry
    assert [of.get_sample_value(name, {"outcome": outcome}) for outcome in ("sent", "failed")] == [1, 1]


def test_the_alert_on_parts_that_fail_knows_which_come_every_ten_minutes_alone(embedded: Embedded):
    alerts = (Path(__file__).parents[2] / "deploy/alerts.yml").read_text(encoding="utf-8")
    (seldom,) = {pattern for pattern in re.findall(r'part[!=]~"([^"]+)"', alerts)}
    swept, looked = embedded.process(), embedded.process()
    housekeeping.sweep(swept)
    housekeeping.look(looked)
    assert parts(swept) and all(re.fullmatch(seldom, part) for part in parts(swept))
    assert parts(looked) and not any(re.fullmatch(seldom, part) for part in parts(looked))


def parts(worker: WorkerProcess) -> set[str]:
    (failures,) = worker.metrics.failures.collect()
    return {sample.labels["part"] for sample in failures.samples}


def test_the_thread_outlives_a_database_that_is_away_and_ends_when_asked(embedded: Embedded, capsys):
    worker: WorkerProcess = embedded.process(housekeeping_s=0.05)
    keeper = housekeeping.Housekeeping(worker)
    keeper.start()
    wait_for(lambda: workers(embedded), "the first heartbeat")
    (before,) = workers(embedded)
    with embedded.db.write() as session:
        session.execute(sa.text("ALTER TABLE workers RENAME TO gone"))
    wait_for(lambda: "a part of housekeeping failed" in capsys.readouterr().out, "a failed pass")
    with embedded.db.write() as session:
        session.execute(sa.text("ALTER TABLE gone RENAME TO workers"))
    wait_for(lambda: workers(embedded)[0].last_seen_at > before.last_seen_at + timedelta(seconds=0.1), "the next heartbeat")
    began = time.monotonic()
    keeper.stop()
    assert time.monotonic() - began < 2
    assert workers(embedded) == []
    assert "housekeeping" not in [thread.name for thread in threading.enumerate()]
