"""What a job's run has in a real MLflow server: parameters, metrics, files, and a model that loads."""

from __future__ import annotations

import json
import re
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sqlalchemy as sa
import timm
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from onnx import TensorProto, helper
from safetensors.torch import load_file

from app.database import EMBEDDED_TENANT
from app.ids import new_id
from app.jobs import service
from app.jobs.table import JobMetric
from tests.adaptation.conftest import CLASSES, SIZE
from tests.s3 import Bucket
from tests.worker.conftest import embedded_in
from tests.worker.embedded import QUICK, ROOT, Embedded
from tests.worker.tracking.telling import (
    claimed,
    open_exports,
    published,
    runs,
    succeed,
    worker_of,
)
from worker.draining import drain
from worker.process import WorkerProcess
from worker.tracking import exports, model, story


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
