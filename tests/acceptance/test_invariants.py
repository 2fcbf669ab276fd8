"""service.md's invariants against real workers: each test kills, delays or doubles something."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.database import EMBEDDED_TENANT
from app.jobs import service
from app.jobs.table import Worker
from tests.worker.embedded import (
    ENDLESS,
    LONGER,
    QUICK,
    Embedded,
    asleep,
    caught_with_a_checkpoint,
    child_of,
    gone,
    processes_that_name,
    undisturbed,
    wait_for,
)

pytestmark = pytest.mark.acceptance


def attempts(embedded: Embedded, job_id: str) -> list[str]:
    return [event.message for event in embedded.events(job_id, "state") if event.message.endswith("is running")]


def finish(embedded: Embedded, *job_ids: str) -> None:
    """Ends jobs that would go on for ever."""
    for job_id in job_ids:
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
    for job_id in job_ids:
        embedded.until(job_id, "cancelled")


def test_1_a_job_whose_wake_up_was_lost_runs_all_the_same_and_a_cancelled_one_does_not(embedded: Embedded):
    cancelled, job_id = (embedded.submit(seed=n, **QUICK) for n in range(2))
    service.cancel(embedded.db, EMBEDDED_TENANT, cancelled)
    shutil.rmtree(embedded.settings.broker_dir)
    with embedded.worker():
        embedded.until(job_id, "succeeded")
    assert attempts(embedded, job_id) == ["attempt 1 is running"]
    assert (embedded.job(cancelled).status, attempts(embedded, cancelled)) == ("cancelled", [])


def test_2_a_message_that_comes_five_times_is_one_run(embedded: Embedded):
    job_id = embedded.submit(**QUICK)
    for _ in range(4):
        embedded.wake(job_id)
    with embedded.worker(), embedded.worker():
        embedded.until(job_id, "succeeded")
        wait_for(lambda: not list(embedded.settings.broker_dir.rglob("*.msg")), "the messages to be taken")
    assert attempts(embedded, job_id) == ["attempt 1 is running"]
    assert embedded.job(job_id).attempt == 1


def test_3_a_job_whose_worker_is_killed_ends_in_the_weights_of_an_undisturbed_one(embedded: Embedded):
    killed = embedded.submit(**LONGER)
    with embedded.worker() as worker:
        number = caught_with_a_checkpoint(embedded, killed)
        worker.kill()
        wait_for(lambda: gone(number), "the death of its child", 5)
        worker.wait()
    theirs = undisturbed(embedded, killed)
    assert embedded.job(killed).status == "running", "nobody has noticed yet"
    with embedded.worker():
        job = embedded.until(killed, "succeeded")
    assert (job.attempt, job.lost_attempts) == (2, 1)
    started = embedded.until_event(killed, "started", attempt=2)
    assert started.data["resumed_from"] is not None, "it went on from a checkpoint"
    ours = embedded.published(killed)
    assert ours["model.safetensors"] == theirs["model.safetensors"]
    assert ours["translator.safetensors"] == theirs["translator.safetensors"]
    assert ours["metrics.json"] == theirs["metrics.json"]


def test_3_a_worker_asked_to_stop_hands_its_job_to_the_next(embedded: Embedded):
    job_id = embedded.submit(**ENDLESS)
    with embedded.worker() as first:
        embedded.until_event(job_id, "checkpoint")
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
    assert (embedded.job(job_id).status, embedded.job(job_id).lost_attempts) == ("queued", 0)
    with embedded.worker():
        started = embedded.until_event(job_id, "started", attempt=2)
        assert started.data["resumed_from"][1] > 0
        finish(embedded, job_id)


def test_4_a_worker_that_slept_through_its_lease_publishes_nothing(embedded: Embedded):
    job_id = embedded.submit(**LONGER)
    with embedded.worker() as sleeper:
        number = caught_with_a_checkpoint(embedded, job_id)
        os.kill(number, signal.SIGSTOP)
        asleep(embedded, sleeper)
        with embedded.worker() as other:
            job = embedded.until(job_id, "succeeded")
            assert job.attempt == 2
            before = embedded.published(job_id)
            os.kill(number, signal.SIGCONT)
            os.kill(sleeper.pid, signal.SIGCONT)
            wait_for(lambda: gone(number), "the death of the stale child")
            # It is as good as new: with the other one gone, it runs the next job.
            other.send_signal(signal.SIGTERM)
            assert other.wait(20) == 0
            embedded.until(embedded.submit(**QUICK), "succeeded")
    assert embedded.published(job_id) == before
    assert {key.split("/")[3] for key in embedded.kept(job_id)} == {"2"}
    assert all(event.attempt == 2 for event in embedded.events(job_id)[-3:])
    assert embedded.job(job_id).status == "succeeded"


def test_6_a_jobs_process_has_no_credentials_no_network_and_limits(embedded: Embedded):
    job_id = embedded.submit(**ENDLESS)
    with embedded.worker() as worker, socket.create_server(("127.0.0.1", 0)) as listener:
        embedded.until_event(job_id, "phase", words="bridging")
        number = child_of(embedded, job_id, 1)
        its = Path(f"/proc/{number}")
        environment = (its / "environ").read_text().split("\0")
        assert b"MODALBRIDGE_DATABASE_URL" in Path(f"/proc/{worker.pid}/environ").read_bytes()
        names = {line.partition("=")[0] for line in environment if line}
        assert names <= {
            "PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "HOME",
            "TMPDIR",
        }  # fmt: skip
        assert "sqlite" not in (its / "cmdline").read_text() + "".join(environment)
        open_files = [str(link.readlink()) for link in (its / "fd").iterdir() if link.exists()]
        assert not [name for name in open_files if "modalbridge.db" in name or ".db" in name or "broker" in name]
        limits = (its / "limits").read_text()
        assert "Max core file size        0 " in limits
        assert "Max data size             unlimited" not in limits
        assert "Max file size             unlimited" not in limits
        if (its / "ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            embedded.until_event(job_id, "warning", words="no network namespace")
        else:
            enter = (
                "import ctypes, os, socket, sys\n"
                f"assert ctypes.CDLL(None).setns(os.open('/proc/{number}/ns/net', os.O_RDONLY), 0) == 0\n"
                f"socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 3)\n"
            )
            tried = subprocess.run([sys.executable, "-c", enter], capture_output=True, text=True)
            assert "Network is unreachable" in tried.stderr
        finish(embedded, job_id)


def test_9_no_job_waits_behind_a_busy_worker_while_another_is_idle(embedded: Embedded):
    with embedded.worker() as first:
        long = embedded.submit(**ENDLESS)
        embedded.until(long, "running")
        # Both messages are sent while the only worker is busy; whichever it holds on to must not matter.
        two = [embedded.submit(seed=n, **ENDLESS) for n in (1, 2)]
        with embedded.worker() as second:
            embedded.until(two[0], "running")
            assert embedded.job(two[1]).status == "queued"
            finish(embedded, long)
            embedded.until(two[1], "running", seconds=10)
            assert embedded.job(two[0]).status == "running", "both run at once"
            with embedded.db.read() as session:
                at = {worker.pid: worker.job_id for worker in session.scalars(sa.select(Worker))}
            assert at == {first.pid: two[1], second.pid: two[0]}
            finish(embedded, *two)


def test_a_job_cancelled_while_its_worker_is_dead_is_cancelled_when_the_lease_runs_out(embedded: Embedded):
    job_id = embedded.submit(**ENDLESS)
    with embedded.worker() as worker:
        embedded.until_event(job_id, "started")
        worker.kill()
        worker.wait()
    assert service.cancel(embedded.db, EMBEDDED_TENANT, job_id).status == "cancelling"
    with embedded.worker():
        embedded.until(job_id, "cancelled")
        wait_for(lambda: processes_that_name(job_id) == [], "the death of its process")
        time.sleep(0.5)
    assert attempts(embedded, job_id) == ["attempt 1 is running"]
    embedded.sweep()
