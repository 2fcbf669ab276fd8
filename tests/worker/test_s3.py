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
from app.jobs import service
from tests.s3 import CREDENTIALS, Bucket
from tests.worker.conftest import embedded_in
from tests.worker.embedded import ENDLESS, LONGER, QUICK, ROOT, Embedded, child_of, gone, wait_for
from tests.worker.test_supervisor import meanwhile
from worker import housekeeping
from worker.draining import drain


@pytest.fixture
def over(tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path, bucket: Bucket) -> Iterator[Embedded]:
    """As `embedded`, with the blobs in a bucket, by way of its proxy."""
    url = new_database_url("sqlite")
    with embedded_in(tmp_path, url, small_data, blobs_url=bucket.url, s3_endpoint_url=bucket.proxy.url) as made:
        yield made


@pytest.fixture(params=["folder", "bucket"])
def either(request: pytest.FixtureRequest) -> Embedded:
    return request.getfixturevalue("embedded" if request.param == "folder" else "over")


def elsewhere(made: Embedded) -> Path:
    """The data folder of another machine, on which this job never was."""
    return made.settings.data_dir.parent / "elsewhere"


def test_a_job_runs_and_nothing_else_stays_in_the_bucket(over: Embedded, bucket: Bucket):
    job_id = over.submit(wake=False)
    assert drain(over.process()) == 1
    assert over.job(job_id).status == "succeeded", over.story(job_id)
    published = over.published(job_id)
    assert {"model.safetensors", "report.html", "metrics.json"} <= set(published)
    assert over.kept(job_id) == sorted(f"jobs/{EMBEDDED_TENANT}/{job_id}/1/{name}" for name in published)
    assert [line for line in bucket.proxy.seen if line.startswith("PUT") and "/checkpoints/" in line], "there were some"
    assert over.checkpoints(job_id) == [] and bucket.begun() == []


def test_a_job_whose_machine_is_gone_ends_in_the_same_weights_on_another(over: Embedded):
    with over.worker() as worker:
        undisturbed = over.submit(**LONGER)
        over.until(undisturbed, "succeeded")
        killed = over.submit(**LONGER)
        number = child_of(over, killed, 1)
        environment = Path(f"/proc/{number}/environ").read_text()
        assert "AWS_" not in environment and CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in environment
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] in Path(f"/proc/{worker.pid}/environ").read_text(), "the worker has it"
        wait_for(lambda: over.checkpoints(killed), "a checkpoint in the bucket", 60, lambda: over.story(killed))
        worker.kill()
        wait_for(lambda: gone(number), "the death of its child", 5)
        worker.wait()
    assert over.job(killed).status == "running", "nobody has noticed yet"
    with over.worker(data_dir=elsewhere(over)):
        job = over.until(killed, "succeeded")
    assert (job.attempt, job.lost_attempts) == (2, 1)
    resumed_from = over.until_event(killed, "started", attempt=2).data["resumed_from"]
    assert resumed_from is not None, "it went on from a checkpoint that came by way of the store"
    ours, theirs = over.published(killed), over.published(undisturbed)
    for name in ("model.safetensors", "translator.safetensors", "metrics.json"):
        assert ours[name] == theirs[name], name
    assert over.checkpoints(killed) == []
    over.sweep()


def hand_back_with_a_checkpoint(made: Embedded, **changes: object) -> str:
    """A job that a worker of this machine has given back half done."""
    job_id = made.submit(wake=False, **(changes or ENDLESS))
    worker = made.process()

    def stop() -> None:
        made.until_event(job_id, "checkpoint")
        worker.stop_asked = True

    with meanwhile(stop):
        assert drain(worker) == 1
    assert made.job(job_id).status == "queued"
    return job_id


def cancelled_when_started(made: Embedded, job_id: str) -> None:
    """Runs the next attempt on another machine, and ends it there."""

    def cancel() -> None:
        made.until_event(job_id, "started", attempt=2)
        service.cancel(made.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(made.process(data_dir=elsewhere(made)))
    assert made.job(job_id).status == "cancelled"
    made.sweep()


def test_a_job_that_is_handed_back_goes_on_elsewhere_from_its_very_last_step(either: Embedded):
    job_id = hand_back_with_a_checkpoint(either)
    (kept,) = either.checkpoints(job_id)
    assert kept.attempt == 1, "the newest alone is kept"
    last = either.events(job_id, "checkpoint")[-1].data
    cancelled_when_started(either, job_id)
    started = either.until_event(job_id, "started", attempt=2)
    assert started.data["resumed_from"] == [last["phase"], last["step"]]
    assert either.checkpoints(job_id) == []


def test_a_checkpoint_that_is_damaged_in_the_store_is_dropped_with_a_warning(either: Embedded, tmp_path: Path):
    job_id = hand_back_with_a_checkpoint(either)
    (kept,) = either.checkpoints(job_id)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"not what was kept")
    either.blobs.put(damaged, kept.key)
    cancelled_when_started(either, job_id)
    warning = either.until_event(job_id, "warning", attempt=2, words="damaged")
    assert warning.data["code"] == "checkpoint_damaged"
    assert either.until_event(job_id, "started", attempt=2).data["resumed_from"] is None, "it begins anew, and does not fail"


def test_an_older_checkpoint_of_this_machine_gives_way_to_a_newer_one_in_the_store(over: Embedded):
    job_id = hand_back_with_a_checkpoint(over)
    away = over.process(data_dir=elsewhere(over))

    def stop() -> None:
        over.until_event(job_id, "checkpoint", attempt=2)
        away.stop_asked = True

    with meanwhile(stop):
        drain(away)
    assert [one.attempt for one in over.checkpoints(job_id)] == [2, 1]
    last = over.events(job_id, "checkpoint")[-1].data

    def cancel() -> None:
        over.until_event(job_id, "started", attempt=3)
        service.cancel(over.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(over.process())
    started = over.until_event(job_id, "started", attempt=3)
    assert started.data["resumed_from"] == [last["phase"], last["step"]]


def test_a_store_that_is_away_for_a_while_fails_no_job(over: Embedded, bucket: Bucket):
    """First while the weights are to be fetched, then while checkpoints are copied and the model is published."""
    job_id = over.submit(wake=False)
    bucket.proxy.mode = "500"

    def interrupt() -> None:
        wait_for(lambda: len(bucket.proxy.seen) > 8, "some tries")
        assert over.job(job_id).status == "running" and not over.events(job_id, "started")
        bucket.proxy.mode = "pass"
        over.until_event(job_id, "started")
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
    assert len(over.published(job_id)) == len(over.kept(job_id)) > 3


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
    either: Embedded, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    job_id = hand_back_with_a_checkpoint(either)
    alive = [one.key for one in either.checkpoints(job_id)]
    over, gone_job = either.submit(wake=False, seed=1, **QUICK), "job_that_was"
    service.cancel(either.db, EMBEDDED_TENANT, over)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    ours = [f"checkpoints/{EMBEDDED_TENANT}/{job}/000001-000001-{'0' * 64}" for job in (over, gone_job)]
    ours += [f"jobs/{EMBEDDED_TENANT}/{gone_job}/1/model.json", f"source_models/{EMBEDDED_TENANT}/model_gone"]
    strangers = ["somebodys/photograph.jpg", "jobs/notes.txt"]
    for key in ours + strangers:
        either.blobs.put(file, key)
    monkeypatch.setattr("worker.housekeeping.ORPHAN_S", -60)
    housekeeping.remove_orphaned_blobs(either.process())
    left = set(either.blobs.keys_older_than(-60))
    assert left >= {*alive, *strangers} and not left & set(ours)
    service.cancel(either.db, EMBEDDED_TENANT, job_id)
    housekeeping.remove_orphaned_blobs(either.process())
    assert either.checkpoints(job_id) == []
    either.sweep()


def test_a_job_that_is_deleted_takes_its_checkpoints_along(over: Embedded):
    job_id = hand_back_with_a_checkpoint(over)
    service.cancel(over.db, EMBEDDED_TENANT, job_id)
    assert over.checkpoints(job_id)
    service.delete(over.db, over.blobs, EMBEDDED_TENANT, job_id)
    assert over.checkpoints(job_id) == []
    over.sweep()


def test_a_stale_attempts_checkpoints_take_no_others_place(over: Embedded, tmp_path: Path):
    """Even one that comes last, from a machine that slept."""
    job_id = hand_back_with_a_checkpoint(over)
    stale = over.checkpoints(job_id)[0]
    file = tmp_path / "file"
    file.write_bytes(b"newer")
    over.blobs.put(file, stale.key.replace("/000001-", "/000002-"))
    file.write_bytes(b"stale, and later")
    over.blobs.put(file, stale.key.replace(stale.sha256, "f" * 64))
    assert over.checkpoints(job_id)[0].attempt == 2
    service.cancel(over.db, EMBEDDED_TENANT, job_id)
    over.sweep()


def test_a_store_that_hangs_does_not_make_a_worker_fall_silent(over: Embedded, bucket: Bucket):
    bucket.proxy.mode = "hang"
    worker = over.process(housekeeping_s=0.05)
    keeper = housekeeping.Housekeeping(worker)
    keeper.start()
    passes: list[float] = []
    with over.db.read() as session:
        began = over.db.now(session)
    wait_for(lambda: bucket.proxy.seen, "the sweep at the store")
    time.sleep(0.5)
    with over.db.read() as session:
        (seen,) = housekeeping.queries.workers_seen_since(session, began)
        passes.append((seen.last_seen_at - seen.started_at).total_seconds())
    bucket.proxy.mode = "pass"
    keeper.stop()
    assert passes[0] > 0.3


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
