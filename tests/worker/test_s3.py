"""Workers over a bucket of a real S3-speaking server: one that dies, one that follows, a store that goes away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.database import EMBEDDED_TENANT
from app.jobs import checkpoints, service
from app.jobs.table import Worker
from tests.s3 import CREDENTIALS, Bucket
from tests.worker.conftest import embedded_in
from tests.worker.embedded import ENDLESS, QUICK, ROOT, Embedded, child_of, gone, meanwhile, undisturbed, wait_for
from worker import housekeeping, leftovers
from worker.draining import drain

LONG_ENOUGH = {
    "settings": {"precision": "fp32", "bridging": {"steps": 30, "batch_size": 8, "patience": 0, "calibration": "never"}}
}
"""To be caught in the middle."""


@pytest.fixture
def over(tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path, bucket: Bucket) -> Iterator[Embedded]:
    """As `embedded`, with the blobs in a bucket, by way of its proxy."""
    url = new_database_url("sqlite")
    with embedded_in(tmp_path, url, small_data, blobs_url=bucket.url, s3_endpoint_url=bucket.proxy.url) as made:
        yield made


def elsewhere(made: Embedded) -> Path:
    """The data folder of another machine, on which this job never was."""
    return made.settings.data_dir.parent / "elsewhere"


def test_a_job_whose_machine_is_gone_ends_in_the_same_weights_on_another(over: Embedded):
    killed = over.submit(**LONG_ENOUGH)
    with over.worker() as worker:
        number = child_of(over, killed, 1)
        environment = Path(f"/proc/{number}/environ").read_text()
        assert "AWS_" not in environment and CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in environment
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] in Path(f"/proc/{worker.pid}/environ").read_text(), "the worker has it"
        wait_for(lambda: over.checkpoints(killed), "a checkpoint in the bucket", story=lambda: over.story(killed))
        worker.kill()
        wait_for(lambda: gone(number), "the death of its child", 5)
        worker.wait()
    theirs = undisturbed(over, killed)
    assert over.job(killed).status == "running", "nobody has noticed yet"
    with over.worker(data_dir=elsewhere(over)):
        job = over.until(killed, "succeeded", seconds=120)
    assert (job.attempt, job.lost_attempts) == (2, 1)
    resumed_from = over.until_event(killed, "started", attempt=2).data["resumed_from"]
    assert resumed_from is not None, "it went on from a checkpoint that came by way of the store"
    ours = over.published(killed)
    for name in ("model.safetensors", "translator.safetensors", "metrics.json"):
        assert ours[name] == theirs[name], name
    assert over.checkpoints(killed) == []
    over.sweep()


def test_a_job_that_is_handed_back_goes_on_elsewhere_from_its_very_last_step(
    over: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And not from a newer checkpoint that is damaged. Cancelled, it keeps one for a while: it may be tried again."""
    job_id = over.submit(wake=False, **ENDLESS)
    here, there = over.process(), over.process(data_dir=elsewhere(over))

    def stop() -> None:
        over.until_event(job_id, "checkpoint")
        here.stop_asked = True

    with meanwhile(stop):
        assert drain(here) == 1
    assert over.job(job_id).status == "queued"
    (kept,) = over.checkpoints(job_id)
    last = over.events(job_id, "checkpoint")[-1].data
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"not what was kept")
    over.blobs.put(damaged, checkpoints.key(EMBEDDED_TENANT, job_id, 1, kept.number + 1, kept.sha256))

    def cancel() -> None:
        over.until_event(job_id, "started", attempt=2)
        service.cancel(over.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(there)
    started = over.until_event(job_id, "started", attempt=2)
    assert started.data["resumed_from"] == [last["phase"], last["step"]]
    assert over.until_event(job_id, "warning", attempt=2, words="damaged").data["code"] == "checkpoint_damaged"
    assert over.job(job_id).status == "cancelled"
    over.sweep()
    assert kept in over.checkpoints(job_id)
    service.retry(over.db, EMBEDDED_TENANT, job_id)
    monkeypatch.setattr("worker.leftovers.ORPHAN_S", -60)
    over.sweep()
    assert kept in over.checkpoints(job_id), "it is alive again"
    service.cancel(over.db, EMBEDDED_TENANT, job_id)
    over.sweep()
    assert over.checkpoints(job_id) == []


def test_a_store_that_is_away_for_a_while_fails_no_job(over: Embedded, bucket: Bucket):
    """First while the weights are to be fetched, then while the model is published."""
    job_id = over.submit(wake=False)
    bucket.proxy.mode = "500"

    def interrupt() -> None:
        wait_for(lambda: len(bucket.proxy.seen) > 8, "some tries")
        assert over.job(job_id).status == "running" and not over.events(job_id, "started")
        bucket.proxy.mode = "pass"
        over.until_event(job_id, "phase", words="evaluating")
        bucket.proxy.mode = "500"
        over.until_event(job_id, "phase", words="publishing")
        time.sleep(over.settings.lease_s + 1)
        assert over.job(job_id).status == "running"
        housekeeping.expire_leases(over.process())
        assert over.job(job_id).status == "running", "its lease was renewed all the time"
        bucket.proxy.mode = "pass"

    with meanwhile(interrupt):
        drain(over.process())
    job = over.job(job_id)
    assert (job.status, job.attempt) == ("succeeded", 1)
    published = over.published(job_id)
    assert {"model.safetensors", "report.html", "metrics.json"} <= set(published)
    assert over.kept(job_id) == sorted(f"jobs/{EMBEDDED_TENANT}/{job_id}/1/{name}" for name in published)
    assert [line for line in bucket.proxy.seen if line.startswith("PUT") and "/checkpoints/" in line], "there were some"
    assert over.checkpoints(job_id) == [] and bucket.begun() == []


@pytest.mark.parametrize("mode", ["500", "hang"])
def test_a_worker_that_is_to_stop_does_not_wait_for_a_store_that_is_away(over: Embedded, bucket: Bucket, mode: str):
    job_id = over.submit(wake=False, **QUICK)
    worker = over.process(cancel_grace_s=1)
    bucket.proxy.mode = mode

    def stop() -> None:
        seen = len(bucket.proxy.seen)
        wait_for(lambda: len(bucket.proxy.seen) > seen, "a try")
        worker.stop_asked = True

    began = time.monotonic()
    with meanwhile(stop):
        assert drain(worker) == 1
    assert time.monotonic() - began < 20
    job = over.job(job_id)
    assert (job.status, job.lost_attempts) == ("queued", 0)
    bucket.proxy.mode = "pass"
    service.cancel(over.db, EMBEDDED_TENANT, job_id)
    over.sweep()


def test_a_job_is_cancelled_while_the_store_is_away(over: Embedded, bucket: Bucket):
    job_id = over.submit(wake=False, **QUICK)
    bucket.proxy.mode = "500"

    def cancel() -> None:
        over.until(job_id, "running")
        service.cancel(over.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(over.process())
    assert over.job(job_id).status == "cancelled"


def test_a_source_model_that_is_gone_from_the_store_fails_the_job(over: Embedded, bucket: Bucket):
    job_id = over.submit(wake=False, **QUICK)
    (key,) = bucket.objects()
    bucket.client.delete_object(Bucket=bucket.name, Key=key)
    drain(over.process())
    assert (over.job(job_id).status, over.job(job_id).error["code"]) == ("failed", "reference_missing")


def test_the_sweep_takes_what_is_nobodys_and_leaves_the_checkpoints_of_living_jobs(
    over: Embedded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    alive, final = (over.submit(wake=False, seed=n, **QUICK) for n in range(2))
    service.cancel(over.db, EMBEDDED_TENANT, final)
    weights = over.blobs.keys("source_models/")
    of_alive, *gone_keys = [checkpoints.key(EMBEDDED_TENANT, job, 1, 1, "0" * 64) for job in (alive, final, "job_that_was")]
    gone_keys += [f"jobs/{EMBEDDED_TENANT}/job_that_was/1/model.json", f"source_models/{EMBEDDED_TENANT}/model_gone"]
    gone_keys.append(f"jobs/{EMBEDDED_TENANT}/{alive}/9/model.json")  # of no attempt that it has
    publishing = f"jobs/{EMBEDDED_TENANT}/{alive}/0/model.json"
    strangers = ["somebodys/photograph.jpg", "jobs/notes.txt"]
    for key in [of_alive, publishing, *gone_keys, *strangers]:
        over.blobs.put(file, key)
    leftovers.remove_orphaned_blobs(over.process())
    assert set(over.blobs.keys_older_than(-60)) >= set(gone_keys), "they are young"
    monkeypatch.setattr("worker.leftovers.ORPHAN_S", -60)
    leftovers.remove_orphaned_blobs(over.process())
    assert set(over.blobs.keys_older_than(-60)) == {*weights, of_alive, publishing, *strangers}
    service.cancel(over.db, EMBEDDED_TENANT, alive)
    service.delete(over.db, over.blobs, EMBEDDED_TENANT, alive)
    assert over.checkpoints(alive) == [], "a job that is deleted takes its checkpoints along"


def test_a_store_that_hangs_does_not_make_a_worker_fall_silent(over: Embedded, bucket: Bucket):
    bucket.proxy.mode = "hang"
    worker = over.process(housekeeping_s=0.05)
    keeper = housekeeping.Housekeeping(worker)
    keeper.start()
    wait_for(lambda: bucket.proxy.seen, "the sweep at the store")

    def heard_for_s() -> float:
        with over.db.read() as session:
            row = session.get(Worker, worker.id)
        return (row.last_seen_at - row.started_at).total_seconds()

    before = heard_for_s()
    wait_for(lambda: heard_for_s() > before + 0.3, "further heartbeats", 4)
    bucket.proxy.mode = "pass"
    keeper.stop()


def test_a_worker_does_not_start_without_its_bucket(over: Embedded, bucket: Bucket):
    env = os.environ | {
        "MODALBRIDGE_DATA_DIR": str(over.settings.data_dir),
        "MODALBRIDGE_DATABASE_URL": over.settings.database_url,
        "MODALBRIDGE_BLOBS_URL": "s3://no-such-bucket",
        "MODALBRIDGE_S3_ENDPOINT_URL": bucket.server,
    }
    command = [sys.executable, "-m", "celery", "--app", "worker.celery_app", "worker", "--pool", "solo"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "the worker cannot start: there is no bucket 'no-such-bucket'" in done.stderr
