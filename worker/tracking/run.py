"""One job's run in MLflow: found again or made, and told what is new. Every call may be repeated: MLflow keeps one of what is said
twice."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import structlog
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from app.blobs import Blobs
from app.jobs.states import TERMINAL, Status
from app.settings import Settings
from worker.process import WorkerProcess
from worker.tracking import model, story
from worker.tracking.exports import Done, Export
from worker.tracking.story import Story, milliseconds

PARAMS, METRICS = 100, 1000
"""Most in one call."""
DOCUMENT_BYTES = 4 * 2**20
"""Of model.json and preprocessing.json, which are a few kilobytes."""
REFUSALS = frozenset(
    {"PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_PARAMETER_VALUE", "FEATURE_DISABLED", "ENDPOINT_NOT_FOUND"}
)
"""Of the registry: to ask again is of no use."""
log = structlog.get_logger()
T = TypeVar("T")


def open_client(settings: Settings) -> MlflowClient:
    """Connects to nothing yet."""
    return MlflowClient(settings.mlflow_tracking_uri, settings.mlflow_tracking_uri)


def tell(
    client: MlflowClient, worker: WorkerProcess, export: Export, told: Story | None, scratch: Path, hold: Callable[[], None]
) -> Done:
    """hold: called before what cannot be taken back, and raises where the export is not this worker's any more. Raises whatever keeps
    MLflow or the blob store from answering."""
    settings = worker.settings
    experiment_id = _experiment(client, settings.mlflow_experiment)
    run = _find(client, experiment_id, export)
    if told is None:
        if run is not None and run.info.lifecycle_stage == "active" and run.info.status in ("RUNNING", "SCHEDULED"):
            client.set_tag(run.info.run_id, f"{story.PREFIX}status", "deleted")
            client.set_terminated(run.info.run_id, "KILLED")
        return Done(None, None, over=True)
    job = told.job
    if run is None:
        hold()
        tags = {"mlflow.user": "modalbridge", "mlflow.source.name": "modalbridge", "mlflow.source.type": "JOB"}
        run = client.create_run(experiment_id, milliseconds(job.started_at), tags | story.tags(told), job.name or job.id)
    elif run.info.lifecycle_stage != "active":
        log.info("a job's run was deleted in MLflow: it is told no more", job_id=job.id)
        return Done(None, None, over=True)
    run_id, points, sent_until = run.info.run_id, told.points, export.sent_until
    if export.run_id != run_id:
        for some in _batches(story.params(told).items(), PARAMS):
            client.log_batch(run_id, params=[Param(name, value) for name, value in some])
        client.log_dict(run_id, story.request(told), "request.json")
        if export.run_id is not None:  # that run is gone, and with it what it was told
            with worker.db.read() as session:
                again = story.read(session, job.id, after=None)
            points = again.points if again is not None else points
    for some in _batches(points, METRICS):
        hold()
        sent = [Metric(story.metric_name(one.series), one.value, milliseconds(one.at), one.step) for one in some]
        client.log_batch(run_id, metrics=sent)
        sent_until = some[-1].at
    for some in _batches(story.tags(told).items(), PARAMS):
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in some])
    status = story.RUN_STATUS[Status(job.status)]
    if job.status in TERMINAL:  # before its files: should they be refused, the run tells at least how the job ended
        client.set_terminated(run_id, status, milliseconds(job.finished_at))
    elif run.info.status != status:
        client.update_run(run_id, status)
    if job.status == Status.SUCCEEDED:
        more = _give_files(client, worker, run, told, scratch, hold)
        client.log_batch(run_id, tags=[RunTag(f"{story.PREFIX}{name}", value) for name, value in more.items()])
    return Done(run_id, sent_until, over=job.status in TERMINAL)


def _experiment(client: MlflowClient, name: str) -> str:
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(name)
        except MlflowException as error:  # another worker was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or (found := client.get_experiment_by_name(name)) is None:
                raise
    return found.experiment_id


def _find(client: MlflowClient, experiment_id: str, export: Export) -> Run | None:
    """By its id; by its tag where that is not known, as the answer to a run that was made may have been lost."""
    if export.run_id is not None:
        try:
            return client.get_run(export.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    wanted = f"tags.`{story.JOB_ID}` = '{export.job_id}'"
    found = client.search_runs([experiment_id], wanted, ViewType.ALL, max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def _give_files(
    client: MlflowClient, worker: WorkerProcess, run: Run, told: Story, scratch: Path, hold: Callable[[], None]
) -> dict[str, str]:
    """What the job has published and is not there yet; its model as a folder that MLflow loads, and as a version of the registered
    model. Returns tags: why it is not."""
    run_id, limit = run.info.run_id, worker.settings.mlflow_file_bytes
    withheld = [one for one in told.artifacts if one.size > limit]
    there = {
        (Path(one.path).name, one.file_size) for place in (None, model.FOLDER) for one in client.list_artifacts(run_id, place)
    }
    for artifact in (one for one in told.artifacts if one.size <= limit and (one.name, one.size) not in there):
        hold()
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            path = worker.blobs.local(artifact.blob_key, Path(folder) / artifact.name)
            client.log_artifact(run_id, str(path), None if artifact.name in model.REPORTS else model.FOLDER)
    hold()
    try:
        card, prepared = (_document(worker.blobs, told, name) for name in ("model.json", "preprocessing.json"))
        found = model.loading(card, prepared)
        written = model.texts(found, card, run_id=run_id, created_at=told.job.finished_at.isoformat(" ")) if found else {}
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # the job's process wrote them: they may be anything
        log.warning("a job's model.json or preprocessing.json cannot be read", job_id=told.job.id, error=repr(error)[:300])
        return {"not_loadable": "its model.json or preprocessing.json cannot be read", "not_registered": ""}
    refused = ""
    if found is None:
        reason = "its weights are used behind the translator: ask for the output onnx or torch_export"
    elif missing := [one for one in withheld if one.name not in model.REPORTS]:
        reason = ", ".join(f"{one.name} has {one.size} bytes, and {limit} is the most that is copied" for one in missing)
    else:
        for name, text in written.items():
            client.log_text(run_id, text, f"{model.FOLDER}/{name}")
        reason = ""
        if (name := story.registered_name(worker.settings.mlflow_model, told)) is not None:
            hold()
            refused = _register(client, run, name, told)
    return {"not_loadable": reason, "not_registered": refused}


def _document(blobs: Blobs, told: Story, name: str) -> dict[str, Any]:
    """Raises ValueError where it is missing, too large or no JSON."""
    (artifact,) = (one for one in told.artifacts if one.name == name)
    if artifact.size > DOCUMENT_BYTES:
        raise ValueError(f"{name} has {artifact.size} bytes")
    with closing(blobs.read(artifact.blob_key, 0, artifact.size)) as reading:
        return json.loads(b"".join(reading))


def _register(client: MlflowClient, run: Run, name: str, told: Story) -> str:
    """Why it was refused, or nothing."""
    try:
        if any(version.name == name for version in client.search_model_versions(f"run_id='{run.info.run_id}'")):
            return ""
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        _add_version(client, run, name, told)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        log.warning("MLflow refuses to register a model", job_id=told.job.id, model=name, error=str(error)[:300])
        return f"{error.error_code}: {error.message}"[:500]
    return ""


def _add_version(client: MlflowClient, run: Run, name: str, told: Story) -> None:
    kept = ("job_id", "verdict", "sha256.model.safetensors")
    tags = {name: value for name, value in story.tags(told).items() if name.removeprefix(story.PREFIX) in kept}
    words = f"{told.job.name or told.job.id}: {told.job.method}, verdict {told.job.result['verdict']}"
    source = f"{run.info.artifact_uri}/{model.FOLDER}"
    client.create_model_version(name, source, run.info.run_id, tags, description=words, await_creation_for=0)


def _batches(items: Iterable[T], most: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while some := list(itertools.islice(remaining, most)):
        yield some
