"""What a real MLflow server is told of jobs, and that no job waits for it."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sqlalchemy as sa
import timm
import torch
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from onnx import TensorProto, helper
from pydantic import ValidationError
from safetensors.torch import load_file

from app.blobs import discard
from app.database import EMBEDDED_TENANT
from app.errors import Problem
from app.ids import new_id
from app.jobs import lifecycle, service
from app.jobs.lifecycle import Claim
from app.jobs.table import Job, JobMetric, MlflowExport
from app.settings import Settings
from tests import mlflow_server
from tests.adaptation.conftest import CLASSES, SIZE
from tests.s3 import Bucket
from tests.worker.conftest import embedded_in
from tests.worker.embedded import QUICK, ROOT, Embedded, wait_for
from worker.draining import claim_next, drain
from worker.housekeeping import Housekeeping
from worker.process import WorkerProcess
from worker.tracking import exports, model, story

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server.serving(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    return MlflowClient(url, url)


def worker_of(embedded: Embedded, url: str, **changes: Any) -> WorkerProcess:
    """With an experiment of its own."""
    return embedded.process(mlflow_tracking_uri=url, **{"mlflow_experiment": new_id("experiment"), "mlflow_model": ""} | changes)


@pytest.fixture
def worker(embedded: Embedded, url: str) -> WorkerProcess:
    return worker_of(embedded, url)


@pytest.fixture
def worker_both(embedded_both: Embedded, url: str) -> WorkerProcess:
    return worker_of(embedded_both, url)


def runs(client: MlflowClient, worker: WorkerProcess) -> list[Run]:
    experiment = client.get_experiment_by_name(worker.settings.mlflow_experiment)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL))


def kept_exports(worker: WorkerProcess) -> list[MlflowExport]:
    with worker.db.read() as session:
        return list(session.scalars(sa.select(MlflowExport)))


def open_exports(worker: WorkerProcess) -> list[MlflowExport]:
    """Those of which there is more to tell."""
    return [row for row in kept_exports(worker) if row.next_at is not None]


def make_due(worker: WorkerProcess) -> None:
    with worker.db.write() as session:
        session.execute(sa.update(MlflowExport).values(next_at=worker.db.now(session)))


def unsent(worker: WorkerProcess, job_id: str) -> list[int]:
    """Steps of the points that the next telling would send."""
    (row,) = kept_exports(worker)
    with worker.db.read() as session:
        told = story.read(session, job_id, after=row.sent_until)
    return [point.step for point in told.points]


def claimed(worker: WorkerProcess, embedded: Embedded, **changes: Any) -> Claim:
    embedded.submit(wake=False, **changes)
    claim = claim_next(worker)
    assert claim is not None
    return claim


def record(worker: WorkerProcess, claim: Claim, *steps: int) -> None:
    with worker.db.write() as session:
        points = {("bridging/L_rec", step): 1 / (1 + step) for step in steps}
        lifecycle.record_metrics(session, claim, points, now=worker.db.now(session))


def fail(worker: WorkerProcess, claim: Claim) -> None:
    with worker.db.write() as session:
        problem = Problem("child_died", "exit code 1 and no result").document()
        assert lifecycle.fail(session, claim, problem, now=worker.db.now(session)) is not None


def succeed(worker: WorkerProcess, claim: Claim, files: dict[str, bytes]) -> None:
    rows = []
    for name, content in files.items():
        key = f"jobs/{claim.tenant_id}/{claim.job_id}/{claim.attempt}/{name}"
        with worker.blobs.stage() as staged:
            staged.write(content)
            size, sha256 = staged.size, staged.sha256
            worker.blobs.keep(staged, key)
        rows.append({"name": name, "media_type": "text/plain", "size": size, "sha256": sha256, "blob_key": key})
    with worker.db.write() as session:
        now = worker.db.now(session)
        assert lifecycle.succeed(session, claim, result={"verdict": "deploy"}, artifacts=rows, now=now) is not None


def published(*files: str, needs_translator: bool = False) -> dict[str, bytes]:
    """The documents that lie beside the model."""
    inputs = [
        {"file": file, "name": "images", "dtype": "float32", "shape": ["batch", 3, 4, 4], "after": "normalize"} for file in files
    ]
    card = {"classes": ["a", "b", "c"], "translator": {"needed": True} if needs_translator else None, "load": []}
    return {
        "model.json": json.dumps(card).encode(),
        "preprocessing.json": json.dumps({"inputs": inputs}).encode(),
        "report.html": b"<h1>Report</h1>",
    }


@pytest.fixture(scope="module")
def told(
    url: str, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, small_data: Path
) -> Iterator[tuple[WorkerProcess, str]]:
    """A job that really ran, and that MLflow was told of."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "jobs.db").write_bytes(sqlite_template.read_bytes())
    with embedded_in(folder, f"sqlite:///{folder / 'jobs.db'}", small_data) as embedded:
        worker = worker_of(embedded, url, mlflow_model="{product}-depth")
        data = {"evaluation": {"uri": f"file://{small_data}/test"}}
        labels = {"team": "robots", "product": "crates"}
        job_id = embedded.submit(wake=False, name="hall 3", labels=labels, data=data, **QUICK)
        assert drain(worker) == 1
        exports.tell_mlflow(worker)
        yield worker, job_id


def test_a_jobs_run_has_its_parameters_tags_metrics_and_files(told: tuple[WorkerProcess, str], client: MlflowClient):
    worker, job_id = told
    (run,) = runs(client, worker)
    job = service.read(worker.db, EMBEDDED_TENANT, job_id)
    assert (job.status, run.info.status, run.info.run_name) == ("succeeded", "FINISHED", "hall 3")
    assert run.info.start_time == story.milliseconds(job.started_at) and run.info.end_time == story.milliseconds(job.finished_at)
    params = run.data.params
    assert (params["method"], params["seed"], params["source_model.architecture"]) == ("source_only", "0", "timm/test_resnet")
    assert params["data.target.uri"].startswith("file://") and params["settings.bridging.steps"] == "12"
    tags = run.data.tags
    assert (tags["modalbridge.job_id"], tags["modalbridge.tenant_id"], tags["label.team"]) == (job_id, EMBEDDED_TENANT, "robots")
    assert tags["modalbridge.device"] and tags["modalbridge.version.torch"] == torch.__version__
    assert tags["modalbridge.verdict"] == job.result["verdict"] and tags["modalbridge.attempt"] == "1"
    with worker.db.read() as session:
        points = session.scalars(sa.select(JobMetric).where(JobMetric.job_id == job_id)).all()
        artifacts = {one.name for one in story.read(session, job_id, after=None).artifacts}
    assert {"evaluation/labelled/source_only/accuracy", "evaluation/labelled/adapted/accuracy"} <= {one.series for one in points}
    for one in points:
        (sent,) = client.get_metric_history(run.info.run_id, one.series)
        assert (sent.step, sent.value, sent.timestamp) == (one.step, one.value, story.milliseconds(one.at))
    files = {file.path for folder in (None, "model") for file in client.list_artifacts(run.info.run_id, folder)}
    beside = {"model", "request.json", "model/MLmodel", "model/python_env.yaml", "model/requirements.txt", "model/code"}
    reports = {"report.html", "report.json", "metrics.json"}
    assert files == beside | {name if name in reports else f"model/{name}" for name in artifacts}
    assert open_exports(worker) == []


def test_its_model_is_a_version_that_loads_and_answers(told: tuple[WorkerProcess, str], client: MlflowClient, small_data: Path):
    worker, job_id = told
    (version,) = client.search_model_versions("name='crates-depth'")
    (run,) = runs(client, worker)
    assert (version.run_id, version.tags["modalbridge.job_id"], version.status) == (run.info.run_id, job_id, "READY")
    loaded = loaded_by_pyfunc(f"models:/crates-depth/{version.version}")
    images = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    ours = timm.create_model("test_resnet", num_classes=len(CLASSES)).eval()
    ours.load_state_dict(load_file(small_data / "source.safetensors"))
    assert np.abs(loaded.predict(images)["logits"] - ours(torch.from_numpy(images)).detach().numpy()).max() < 1e-4
    with pytest.raises(Exception, match="shape"):
        loaded.predict(images[:, :1])


def loaded_by_pyfunc(uri: str) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of its own imports
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model(uri)


def test_onnx_is_loaded_by_mlflows_own_flavour(embedded: Embedded, url: str, client: MlflowClient):
    worker = worker_of(embedded, url, mlflow_model=(name := new_id("model")))
    pool = helper.make_node("GlobalAveragePool", ["images"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["logits"])
    graph = helper.make_graph(
        [pool, flat],
        "mean",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    claim = claimed(worker, embedded)
    succeed(worker, claim, published("model.safetensors", "model.onnx") | {"model.onnx": made.SerializeToString()})
    exports.tell_mlflow(worker)
    (version,) = client.search_model_versions(f"name='{name}'")
    loaded = loaded_by_pyfunc(f"models:/{name}/1")
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    assert np.abs(loaded.predict(images)["logits"] - images.mean((2, 3))).max() < 1e-6
    import mlflow.onnx

    assert isinstance(mlflow.onnx.load_model(f"runs:/{version.run_id}/model"), onnx.ModelProto)


def test_a_program_of_torch_is_preferred_to_weights(tmp_path: Path):
    """By the very file that lies beside the model."""
    torch.export.save(torch.export.export(torch.nn.Linear(2, 1, bias=False), (torch.ones(1, 2),)), tmp_path / "model.pt2")
    card, prepared = (
        {"classes": ["a"], "translator": None},
        json.loads(published("model.safetensors", "model.pt2")["preprocessing.json"]),
    )
    found = model.loading(card, prepared)
    written = model.texts(found, card, run_id="run", created_at="now")
    assert (found.file, json.loads(written["MLmodel"])["flavors"].keys()) == ("model.pt2", {"python_function"})
    scope: dict[str, Any] = {}
    exec(written["code/modalbridge_loader.py"], scope)
    images = np.ones((1, 2), np.float64)
    assert scope["_load_pyfunc"](str(tmp_path)).predict({"images": images})["logits"].shape == (1, 1)


def test_files_from_a_bucket_are_copied_and_no_copy_is_left(
    tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path, bucket: Bucket, url: str, client: MlflowClient
):
    blobs = {"blobs_url": bucket.url, "s3_endpoint_url": bucket.proxy.url}
    with embedded_in(tmp_path, new_database_url("sqlite"), small_data, **blobs) as embedded:
        worker = worker_of(embedded, url)
        files = published("model.safetensors") | {"model.safetensors": b"weights" * 1000}
        succeed(worker, claimed(worker, embedded), files)
        exports.tell_mlflow(worker)
        (run,) = runs(client, worker)
        assert (
            Path(client.download_artifacts(run.info.run_id, "model/model.safetensors", str(tmp_path))).read_bytes()
            == b"weights" * 1000
        )
        assert list((worker.settings.work_dir / exports.SCRATCH).iterdir()) == []


@pytest.mark.parametrize(
    ("files", "changes", "reason"),
    [
        (published("model.onnx") | {"model.onnx": b"x" * 2000}, {"mlflow_file_bytes": 1000}, "model.onnx has 2000 bytes"),
        (published("model.safetensors", needs_translator=True), {}, "behind the translator"),
    ],
)
def test_a_model_that_cannot_be_loaded_there_is_not_registered(
    embedded: Embedded, url: str, client: MlflowClient, files: dict[str, bytes], changes: dict[str, Any], reason: str
):
    worker = worker_of(embedded, url, mlflow_model=(name := new_id("model")), **changes)
    succeed(worker, claimed(worker, embedded), files)
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert run.info.status == "FINISHED" and reason in run.data.tags["modalbridge.not_loadable"]
    assert "report.html" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert client.search_model_versions(f"name='{name}'") == []


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"inputs": [{"name": 1}]}'])
def test_a_job_whose_descriptions_cannot_be_read_is_told_all_the_same(
    embedded: Embedded, worker: WorkerProcess, client: MlflowClient, content: bytes
):
    """Its own process wrote them."""
    succeed(worker, claimed(worker, embedded), published("model.safetensors") | {"preprocessing.json": content})
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert run.info.status == "FINISHED" and "cannot be read" in run.data.tags["modalbridge.not_loadable"]
    assert open_exports(worker) == []


def test_a_registry_that_refuses_costs_the_version_alone(embedded: Embedded, url: str, client: MlflowClient, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("not for you", error_code=databricks_pb2.PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "create_registered_model", refuse)
    worker = worker_of(embedded, url, mlflow_model=new_id("model"))
    succeed(worker, claimed(worker, embedded), published("model.safetensors"))
    exports.tell_mlflow(worker)
    (run,) = runs(client, worker)
    assert (run.info.status, open_exports(worker)) == ("FINISHED", [])
    assert run.data.tags["modalbridge.not_registered"] == "PERMISSION_DENIED: not for you"


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_what_a_model_is_said_to_need_is_of_what_the_workers_image_installs(file: str):
    """The whole of MLflow is here for these tests alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]
    there = {re.split(r"[>\[]", one)[0] for one in (*project["dependencies"], *extra["worker"], *extra["mlflow"])}
    assert set(model.needed(file)) - {"mlflow"} <= there and "mlflow-skinny" in there
    assert all(re.fullmatch(r"[0-9.]+(rc\d+|post\d+)?", version) for version in model.needed(file).values())


def test_a_model_is_named_by_labels_and_without_them_not_registered(embedded: Embedded, url: str, client: MlflowClient):
    worker = worker_of(embedded, url, mlflow_model="{product}-{team}")
    product = new_id("product")
    for labels in ({"product": product}, {"product": product, "team": "a/b"}, {"product": product, "team": "robots"}):
        claim = claimed(worker, embedded, labels=labels)
        succeed(worker, claim, published("model.safetensors"))
    exports.tell_mlflow(worker)
    assert len(runs(client, worker)) == 3
    assert [one.name for one in client.search_registered_models() if product in one.name] == [f"{product}-robots"]


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
