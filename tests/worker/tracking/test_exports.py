"""When MLflow is told of a job, what it is told again, and that no job waits for it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from pydantic import ValidationError

from app.blobs import discard
from app.database import EMBEDDED_TENANT
from app.jobs import lifecycle, service
from app.jobs.table import Job, JobMetric, MlflowExport
from app.settings import Settings
from tests.worker.embedded import QUICK, Embedded, wait_for
from tests.worker.tracking.telling import (
    NOBODY,
    claimed,
    fail,
    kept_exports,
    make_due,
    open_exports,
    record,
    runs,
    unsent,
    worker_of,
)
from worker.draining import claim_next, drain
from worker.housekeeping import Housekeeping
from worker.process import WorkerProcess
from worker.tracking import exports, story


def test_a_job_is_told_while_it_runs_and_each_point_once(embedded: Embedded, worker: WorkerProcess, client: MlflowClient):
    claim = claimed(worker, embedded)
    record(worker, claim, 0, 10)
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert run.info.status == "RUNNING"
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "bridging/L_rec")] == [
        (0, 1.0),
        (10, 1 / 11),
    ]
    record(worker, claim, 10, 20)  # the first of them again, as after a resume
    exports.tell_mlflow(worker)
    assert len(client.get_metric_history(run.info.run_id, "bridging/L_rec")) == 2, "not before it is due"
    fail(worker, claim)
    exports.tell_mlflow(worker)  # the end does not wait
    (run,) = runs(client, worker)
    assert (run.info.status, run.data.tags["modalbridge.error_code"]) == ("FAILED", "child_died")
    assert [one.step for one in client.get_metric_history(run.info.run_id, "bridging/L_rec")] == [0, 10, 20]
    assert open_exports(worker) == []


def test_points_of_a_clock_that_was_set_back_are_told_too(
    embedded_both: Embedded, worker_both: WorkerProcess, client: MlflowClient
):
    """Of the database: where that is SQLite, the machine's own."""
    worker = worker_both
    claim = claimed(worker, embedded_both)
    for step, ahead in ((0, timedelta(hours=1)), (10, timedelta(0)), (20, timedelta(seconds=1))):
        with worker.db.write() as session:
            now = worker.db.now(session) + ahead
            lifecycle.record_metrics(session, claim, {("bridging/L_rec", step): 1.0}, now=now)
        make_due(worker)
        exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert [one.step for one in client.get_metric_history(run.info.run_id, "bridging/L_rec")] == [0, 10, 20]
    assert unsent(worker, claim.job_id) == []
    fail(worker, claim)


def test_a_job_that_is_tried_again_goes_on_in_its_run(embedded_both: Embedded, worker_both: WorkerProcess, client: MlflowClient):
    worker = worker_both
    claim = claimed(worker, embedded_both)
    record(worker, claim, 0)
    fail(worker, claim)
    exports.tell_mlflow(worker)
    service.retry(worker.db, EMBEDDED_TENANT, claim.job_id)
    again = claim_next(worker)
    assert unsent(worker, claim.job_id) == [], "they were sent before it failed"
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert (run.info.status, run.data.tags["modalbridge.error_code"], run.data.tags["modalbridge.attempt"]) == (
        "RUNNING",
        "",
        "2",
    )
    record(worker, again, 0, 10)
    fail(worker, again)
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert run.info.status == "FAILED"
    assert [one.step for one in client.get_metric_history(run.info.run_id, "bridging/L_rec")] == [0, 10]


def test_a_job_that_is_tried_again_and_cancelled_while_it_waits_is_cancelled_there_too(
    embedded_both: Embedded, worker_both: WorkerProcess, client: MlflowClient
):
    worker = worker_both
    claim = claimed(worker, embedded_both)
    fail(worker, claim)
    exports.tell_mlflow(worker)
    (failed,) = runs(client, worker)
    assert (failed.info.status, [row.run_id for row in kept_exports(worker)]) == ("FAILED", [failed.info.run_id])
    service.retry(worker.db, EMBEDDED_TENANT, claim.job_id)
    exports.tell_mlflow(worker)
    assert runs(client, worker)[0].info.status == "SCHEDULED"
    service.cancel(worker.db, EMBEDDED_TENANT, claim.job_id)
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert (run.info.status, run.data.tags["modalbridge.status"]) == ("KILLED", "cancelled")
    assert open_exports(worker) == []


def test_what_was_told_of_a_job_is_forgotten_after_it(embedded_both: Embedded, worker_both: WorkerProcess, client: MlflowClient):
    worker = worker_both
    ended, going, deleted = (claimed(worker, embedded_both) for _ in range(3))
    for claim in (ended, deleted):
        fail(worker, claim)
    exports.tell_mlflow(worker)
    service.delete(worker.db, worker.blobs, EMBEDDED_TENANT, deleted.job_id)
    exports.forget_deleted(worker)
    assert {row.job_id for row in kept_exports(worker)} == {ended.job_id, going.job_id}


def test_of_a_deleted_job_nothing_is_kept_for_a_server_that_is_told_no_more(embedded_both: Embedded):
    """MLflow was switched off before it had heard of the job's end."""
    worker = embedded_both.process()
    with_mlflow = embedded_both.process(mlflow_tracking_uri=NOBODY)
    kept, deleted = (claimed(with_mlflow, embedded_both) for _ in range(2))
    fail(worker, deleted)
    service.delete(worker.db, worker.blobs, EMBEDDED_TENANT, deleted.job_id)
    exports.forget_deleted(worker)
    assert {row.job_id for row in open_exports(worker)} == {kept.job_id, deleted.job_id}, "it may be back in a minute"
    with worker.db.write() as session:
        long_due = worker.db.now(session) - 1.1 * exports.UNTOLD
        session.execute(sa.update(MlflowExport).values(next_at=long_due))
    exports.forget_deleted(worker)
    assert {row.job_id for row in kept_exports(worker)} == {kept.job_id}


def test_who_dies_while_telling_makes_no_second_run(embedded_both: Embedded, worker_both: WorkerProcess, client: MlflowClient):
    worker = worker_both
    claim = claimed(worker, embedded_both)
    record(worker, claim, 0, 10)
    dead = exports.claim(worker.db)
    exports._tell(worker, dead)
    exports.tell_mlflow(worker)
    assert open_exports(worker)[0].run_id is None, "it is the other's for a while"
    make_due(worker)
    exports.tell_mlflow(worker)
    exports.settle(worker.db, dead, exports.Done("late", None, over=True))
    (row,) = open_exports(worker)
    (run,) = runs(client, worker)
    assert row.run_id == run.info.run_id, "and the late word of the first changes nothing"
    assert len(client.get_metric_history(run.info.run_id, "bridging/L_rec")) == 2
    with pytest.raises(exports.LostError):
        exports.hold(worker.db, dead)


def test_workers_that_tell_at_once_make_one_run_a_job(embedded_both: Embedded, worker_both: WorkerProcess, client: MlflowClient):
    worker = worker_both
    ids = {claimed(worker, embedded_both).job_id for _ in range(4)}
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(exports.tell_mlflow, [worker] * 3))
    exports.tell_mlflow(worker)
    assert sorted(run.data.tags["modalbridge.job_id"] for run in runs(client, worker)) == sorted(ids)


def test_a_server_that_is_down_is_told_once_it_is_up(embedded: Embedded, worker: WorkerProcess, client: MlflowClient):
    away = embedded.process(mlflow_tracking_uri=NOBODY)
    claim = claimed(away, embedded)
    record(away, claim, 0)
    fail(away, claim)
    exports.tell_mlflow(away)
    exports.tell_mlflow(worker)
    (row,) = open_exports(worker)
    assert (row.failures, row.run_id) == (1, None) and "Connection" in row.error
    assert away.metrics.registry.get_sample_value("modalbridge_worker_mlflow_exports_total", {"outcome": "failed"}) == 1
    assert runs(client, worker) == [], "not before it is due"
    for _ in range(2):
        make_due(worker)
        exports.tell_mlflow(worker)
    assert [run.info.status for run in runs(client, worker)] == ["FAILED"]
    assert open_exports(worker) == []


def test_it_waits_longer_each_time_and_is_given_up_at_last(embedded: Embedded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exports, "MOST", 3)
    worker = embedded.process(mlflow_tracking_uri=NOBODY)
    claimed(worker, embedded)
    waits = []
    for _ in range(2):
        exports.tell_mlflow(worker)
        (row,) = open_exports(worker)
        with worker.db.read() as session:
            waits.append((row.next_at - worker.db.now(session)).total_seconds())
        make_due(worker)
    assert 8 < waits[0] <= 12 < 18 < waits[1] <= 24
    exports.tell_mlflow(worker)
    assert open_exports(worker) == []
    assert worker.metrics.registry.get_sample_value("modalbridge_worker_mlflow_exports_total", {"outcome": "given_up"}) == 1


def test_nothing_waits_for_a_server_that_hangs(embedded: Embedded, client: MlflowClient, monkeypatch: pytest.MonkeyPatch):
    """It takes the connection and says nothing. A job runs, ends and is read meanwhile; housekeeping goes round."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with socket.create_server(("127.0.0.1", 0)) as hung:
        worker = embedded.process(mlflow_tracking_uri=f"http://127.0.0.1:{hung.getsockname()[1]}", housekeeping_s=0.05)
        housekeeping = Housekeeping(worker)
        job_id = embedded.submit(wake=False, **QUICK)
        discard(embedded.blobs, embedded.blobs.keys("source_models/"))  # so that it soon fails
        housekeeping.start()
        began = time.monotonic()
        assert drain(worker) == 1
        connection, _ = hung.accept()
        passes = worker.metrics.registry.get_sample_value("modalbridge_worker_housekeeping_passes_total")
        wait_for(
            lambda: worker.metrics.registry.get_sample_value("modalbridge_worker_housekeeping_passes_total") > passes + 2,
            "passes",
        )
        assert embedded.job(job_id).status == "failed" and open_exports(worker)[0].failures == 0
        assert time.monotonic() - began < 30
        housekeeping.stop()
        connection.close()
        wait_for(lambda: open_exports(worker)[0].failures == 1 if open_exports(worker) else False, "the failure")


def test_a_server_that_takes_longer_than_a_claim_is_waited_for_by_one_worker_whose_failure_counts(
    embedded_both: Embedded, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setattr(exports, "CLAIM", timedelta(seconds=1))
    monkeypatch.setattr(exports, "RENEW_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hung, ThreadPoolExecutor(1) as pool:
        worker = embedded_both.process(mlflow_tracking_uri=f"http://127.0.0.1:{hung.getsockname()[1]}")
        claimed(worker, embedded_both)
        telling = pool.submit(exports.tell_mlflow, worker)
        connection, _ = hung.accept()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert exports.claim(worker.db) is None, "another worker would begin anew"
            time.sleep(0.1)
        telling.result(timeout=30)
        connection.close()
    (row,) = open_exports(worker)
    assert row.failures == 1
    with worker.db.read() as session:
        assert row.next_at - worker.db.now(session) > timedelta(seconds=5)


def test_a_job_that_is_deleted_before_its_end_was_told_is_not_left_running(
    embedded: Embedded, worker: WorkerProcess, client: MlflowClient
):
    claim = claimed(worker, embedded)
    exports.tell_mlflow(worker)
    fail(worker, claim)
    service.delete(worker.db, worker.blobs, EMBEDDED_TENANT, claim.job_id)
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert (run.info.status, run.data.tags["modalbridge.status"]) == ("KILLED", "deleted")
    assert kept_exports(worker) == []


def test_a_server_that_has_lost_its_runs_is_told_all_of_it_again(embedded: Embedded, worker: WorkerProcess, client: MlflowClient):
    claim = claimed(worker, embedded)
    record(worker, claim, 0, 10)
    exports.tell_mlflow(worker)
    record(worker, claim, 20)
    with worker.db.write() as session:
        session.execute(sa.update(MlflowExport).values(run_id="f" * 32, next_at=worker.db.now(session)))
    emptied = worker_of(embedded, worker.settings.mlflow_tracking_uri)
    exports.tell_mlflow(emptied)
    (run,) = runs(client, emptied)
    assert [one.step for one in client.get_metric_history(run.info.run_id, "bridging/L_rec")] == [0, 10, 20]
    assert run.data.params["seed"] == "0"


def test_a_run_that_is_deleted_in_mlflow_is_left_in_peace(embedded: Embedded, url: str, client: MlflowClient):
    worker = worker_of(embedded, url)
    claim = claimed(worker, embedded)
    exports.tell_mlflow(worker)
    client.delete_run(runs(client, worker)[0].info.run_id)
    fail(worker, claim)
    exports.tell_mlflow(worker)
    assert [run.info.status for run in runs(client, worker)] == ["RUNNING"]
    assert open_exports(worker) == []


def test_no_signature_of_a_reference_goes_there(embedded: Embedded):
    """Nor does a job that ran before metric points had a time lack one."""
    worker = embedded.process(mlflow_tracking_uri=NOBODY)
    claim = claimed(worker, embedded)
    record(worker, claim, 3)
    with worker.db.write() as session:
        job = session.get_one(Job, claim.job_id)
        signed = {"uri": "https://data.example/a.tar?X-Amz-Signature=secret"}
        job.request = job.request | {"data": job.request["data"] | {"target": signed}}
        session.execute(sa.update(JobMetric).values(at=None))
    with worker.db.read() as session:
        told = story.read(session, claim.job_id, after=None)
    assert story.params(told)["data.target.uri"] == "https://data.example/a.tar?..."
    assert "secret" not in json.dumps(story.request(told))
    assert [(one.step, one.at) for one in told.points] == [(3, told.job.started_at)]


def test_without_the_setting_nothing_is_kept(embedded: Embedded):
    claim = claimed(worker := embedded.process(), embedded)
    fail(worker, claim)
    service.retry(worker.db, EMBEDDED_TENANT, claim.job_id)
    exports.tell_mlflow(worker)
    assert kept_exports(worker) == []


def test_a_worker_without_the_client_says_what_to_install(embedded: Embedded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "mlflow")
    exports.require(embedded.settings)
    with pytest.raises(RuntimeError, match=r"install modalbridge\[mlflow\]"):
        exports.require(embedded.process(mlflow_tracking_uri=NOBODY).settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mlflow_tracking_uri": "sqlite:///mlflow.db"},
        {"mlflow_tracking_uri": "http://me:secret@mlflow"},
        {"mlflow_ui_url": "javascript:alert(1)"},
        {"mlflow_model": "a/b"},
        {"mlflow_model": "{team"},
    ],
)
def test_a_setting_that_cannot_be_is_refused(wrong: dict[str, str]):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(**wrong)


def test_copies_that_a_killed_worker_left_are_removed(embedded: Embedded):
    worker = embedded.process()
    old, new = (worker.settings.work_dir / exports.SCRATCH / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    exports.remove_scratch(worker)
    assert not old.exists() and new.exists()
