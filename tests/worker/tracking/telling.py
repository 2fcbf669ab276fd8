"""Jobs as a worker brings them to their ends, and what MLflow and our own rows say of them then."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from app.errors import Problem
from app.ids import new_id
from app.jobs import lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.table import MlflowExport
from tests.worker.embedded import Embedded
from worker.draining import claim_next
from worker.process import WorkerProcess
from worker.tracking import story

NOBODY = "http://127.0.0.1:9"


def worker_of(embedded: Embedded, url: str, **changes: Any) -> WorkerProcess:
    """With an experiment of its own."""
    return embedded.process(mlflow_tracking_uri=url, **{"mlflow_experiment": new_id("experiment"), "mlflow_model": ""} | changes)


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
