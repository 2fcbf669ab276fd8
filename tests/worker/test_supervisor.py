"""One attempt, from its claim to its end, with the real engine in a real process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import sqlalchemy as sa
import timm
import torch
from safetensors.torch import save
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from app.database import EMBEDDED_TENANT
from app.jobs import queries
from app.source_models import service as source_models
from app.source_models.table import SourceModel
from app.spec import SourceModelDescription
from tests.adaptation.conftest import CLASSES, SIZE
from tests.worker.embedded import ENDLESS, QUICK, TOO_SMALL, Embedded, counted, processes_that_name
from worker.draining import drain


def test_a_job_from_claim_to_published_model(embedded_both: Embedded):
    job_id = embedded_both.submit(wake=False, data=evaluated(embedded_both))
    assert drain(embedded_both.process()) == 1
    job = embedded_both.job(job_id)
    assert job.status == "succeeded", job.error
    assert job.phase is None and job.progress is None and job.worker_id is None
    assert job.result["verdict"]
    assert job.result["accuracy"]["images"] == 36
    published = embedded_both.published(job_id)
    named = {"model.safetensors", "model.json", "report.html", "report.json", "metrics.json", "pictures.json", "pictures.webp"}
    assert named <= set(published)
    assert embedded_both.kept(job_id) == sorted(f"jobs/{EMBEDDED_TENANT}/{job_id}/1/{name}" for name in published)
    kinds = [event.kind for event in embedded_both.events(job_id)]
    assert kinds[:3] == ["state", "state", "started"] and kinds[-1] == "state"
    assert {"phase", "data", "checkpoint"} <= set(kinds)
    phases = [event.message for event in embedded_both.events(job_id, "phase")]
    assert phases == ["preparing", "bridging", "transferring", "evaluating", "publishing"]
    assert [event.seq for event in embedded_both.events(job_id)] == list(range(1, len(kinds) + 1))
    with embedded_both.db.read() as session:
        series = {
            point.series
            for point in queries.metrics_after(session, EMBEDDED_TENANT, job_id, series=None, after=None, limit=10_000)
        }
    assert series == set(json.loads(published["metrics.json"])["series"])
    assert processes_that_name(job_id) == []


def evaluated(embedded: Embedded) -> dict[str, object]:
    scaling = {"kind": "millimetres", "high": 5000}
    return {
        "evaluation": {"uri": f"file://{embedded.data}/test"},
        "target": {"uri": f"file://{embedded.data}/target", "scaling": scaling},
        "pairs": {"uri": f"file://{embedded.data}/pairs", "scaling": scaling},
    }


def test_a_job_of_several_source_models(embedded_both: Embedded):
    torch.manual_seed(1)
    weights = save(timm.create_model("test_efficientnet", num_classes=len(CLASSES)).state_dict())
    description = SourceModelDescription(architecture="timm/test_efficientnet", classes=CLASSES, input={"size": SIZE})
    with embedded_both.blobs.stage() as staged:
        staged.write(weights)
        second, _ = source_models.store(
            embedded_both.db, embedded_both.blobs, embedded_both.settings, EMBEDDED_TENANT, description, staged
        )
    job_id = embedded_both.submit(wake=False, further_source_models=[{"id": second.id}], **QUICK)
    assert drain(embedded_both.process()) == 1
    assert embedded_both.job(job_id).status == "succeeded", embedded_both.story(job_id)
    card = json.loads(embedded_both.published(job_id)["model.json"])
    assert [member["architecture"] for member in card["members"]] == ["timm/test_resnet", "timm/test_efficientnet"]


def test_what_the_engine_finds_wrong_ends_the_job_with_its_code(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    with embedded.db.write() as session:
        description = session.scalar(sa.select(SourceModel.description))
        session.execute(sa.update(SourceModel).values(description=description | {"architecture": "timm/test_vit"}))
    drain(embedded.process())
    job = embedded.job(job_id)
    assert (job.status, job.error["code"]) == ("failed", "source_model_mismatch")
    assert job.error["remedy"]
    assert embedded.published(job_id) == {} and embedded.kept(job_id) == []


def test_code_in_a_pickle_does_not_run(embedded: Embedded, tmp_path: Path):
    """The front end would not have taken this file: here it is put into its place behind its back."""
    marker = tmp_path / "the code ran"
    code = b"cos\nsystem\n(S'touch \"" + os.fsencode(marker) + b"\"'\ntR."
    job_id = embedded.submit(wake=False, **QUICK)
    with embedded.db.read() as session:
        embedded.blobs.path(session.scalar(sa.select(SourceModel.blob_key))).write_bytes(code)
    drain(embedded.process())
    job = embedded.job(job_id)
    assert job.status == "failed"
    assert job.error["code"] in ("unsafe_pickle", "source_model_format")
    assert not marker.exists()


def test_a_process_that_dies_without_a_result_fails_the_job_with_its_last_words(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    drain(embedded.process(**TOO_SMALL))
    job = embedded.job(job_id)
    assert (job.status, job.error["code"], job.lost_attempts) == ("failed", "child_died", 0)
    assert "Error" in embedded.events(job_id, "log")[-1].message


def test_the_log_says_which_attempt_failed_on_which_worker_and_why(embedded: Embedded):
    job_id, worker = embedded.submit(wake=False, **QUICK), embedded.process(**TOO_SMALL)
    with capture_logs(processors=[merge_contextvars]) as lines:
        drain(worker)
    (line,) = [line for line in lines if line["event"] == "attempt ends"]
    ids = {"job_id": job_id, "attempt": 1, "worker_id": worker.id}
    ended = {"outcome": "failed", "cause": "child_died", "status": "failed"}
    assert line == {"event": "attempt ends", "log_level": "warning", **ids, **ended}


def test_without_data_roots_nothing_may_be_read(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    drain(embedded.process(data_roots=()))
    assert embedded.job(job_id).error["code"] == "reference_outside_roots"


def test_the_time_limit_ends_the_job(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker = embedded.process(job_time_limit_s=1.0)
    drain(worker)
    job = embedded.job(job_id)
    assert (job.status, job.error["code"]) == ("failed", "time_limit")
    assert counted(worker, "attempts", outcome="failed", cause="time_limit") == 1
    assert counted(worker, "child_exits", cause="ended_by_worker") == 1
