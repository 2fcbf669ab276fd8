"""Jobs by the library: one test for the blocking and the asynchronous client."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs import lifecycle
from conftest import Jobs
from faults import Proxy, instead, late, lost, silent
from modalbridge import (
    Client,
    ConnectionFailed,
    Data,
    DatasetInUse,
    IdempotencyConflict,
    Input,
    Invalid,
    InvalidArchive,
    InvalidReference,
    JobActive,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobRequest,
    NotFound,
    Pairs,
    Retries,
    SourceModelDescription,
    Target,
    Timeout,
    UnknownHost,
)
from modalbridge.errors import of_document
from tests.archives import of_folder
from tests.conftest import Service

PROGRESS = {"phase": "bridging", "step": 120, "of": 600, "fraction": 0.11, "eta_s": 60.0, "losses": {"L_rec": 0.1}}


def test_one_call_submits_the_request_with_its_weights(client: Client, request_body: dict[str, Any], weights: Path) -> None:
    job = client.jobs.submit(request_body, weights)
    assert (job.status, job.finished, job.name, job.labels) == ("queued", False, "hall 3", {"team": "robots"})
    assert job.request["settings"]["weights"]["rec"] == 1.0, "defaults are part of what was accepted"
    assert job.created_at.tzinfo is not None
    assert client.jobs.get(job.id).raw == client.jobs.get(job).raw == job.refresh().raw


def test_a_typed_request_is_the_same_as_a_dict(client: Client, request_body: dict[str, Any], weights: Path, data: Path) -> None:
    typed = JobRequest(
        Data(Target(f"file://{data}/target", modality="depth"), Pairs(f"file://{data}/pairs")),
        SourceModelDescription("torchvision/resnet18", ("box", "mug"), Input(size=32)),
        seed=7,
    )
    plain = {name: request_body[name] for name in ("source_model", "data")} | {"seed": 7}
    del plain["data"]["evaluation"]
    assert client.jobs.submit(typed, weights).request == client.jobs.submit(plain, str(weights)).request


def test_a_stored_source_model_is_named_by_its_id(client: Client, request_body: dict[str, Any], weights: Path) -> None:
    model = client.source_models.upload(weights, request_body["source_model"])
    assert model.description["classes"] == ["box", "mug"] and model.size == weights.stat().st_size
    assert client.source_models.upload(weights, request_body["source_model"]).id == model.id
    assert client.jobs.submit(request_body, model.id).source_model_id == model.id
    assert client.jobs.submit(request_body | {"source_model": {"id": model.id}}).source_model_id == model.id


def test_weights_that_are_not_there_are_told_before_anything_is_sent(
    client: Client, request_body: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        client.jobs.submit(request_body, tmp_path / "none.safetensors")
    assert list(client.jobs.list()) == []


@pytest.mark.parametrize("by_id", [False, True])
def test_a_lost_answer_makes_no_second_job(
    by_id: bool, faulty: Client, proxy: Proxy, request_body: dict[str, Any], weights: Path
) -> None:
    model = faulty.source_models.upload(weights, request_body["source_model"]).id if by_id else weights
    proxy.faults += [("POST /jobs", lost), ("POST /jobs", lost)]
    job = faulty.jobs.submit(request_body, model)
    assert proxy.count("POST /jobs") == 3
    assert [one.id for one in faulty.jobs.list()] == [job.id]


def test_two_calls_are_two_jobs_unless_they_have_the_same_key(
    client: Client, request_body: dict[str, Any], weights: Path
) -> None:
    first, second = client.jobs.submit(request_body, weights), client.jobs.submit(request_body, weights)
    assert first.id != second.id
    one = client.jobs.submit(request_body, weights, idempotency_key="k")
    assert client.jobs.submit(request_body, weights, idempotency_key="k").id == one.id
    with pytest.raises(IdempotencyConflict) as caught:
        client.jobs.submit(request_body | {"seed": 1}, weights, idempotency_key="k")
    assert caught.value.document["job_id"] == one.id


def test_a_name_that_the_operator_has_not_named_is_an_error_of_its_own(service: Service) -> None:
    answer = service.client.get("/jobs", headers={"Host": "bridge.example.org"})
    error = of_document(answer.json(), answer.status_code)
    assert (
        type(error) is UnknownHost
        and (error.status, error.code) == (403, "unknown_host")
        and "bridge.example.org" in error.detail
    )


def test_a_refusal_says_what_where_and_what_to_do(client: Client, request_body: dict[str, Any], weights: Path) -> None:
    with pytest.raises(Invalid) as caught:
        client.jobs.submit(request_body | {"settings": {"transfer": {"epoch": 3}}}, weights)
    error = caught.value
    assert (error.code, error.status, error.pointer) == ("unknown_field", 422, "/settings/transfer/epoch")
    assert "'epochs'" in error.detail and error.remedy and error.request_id.startswith("req_")
    assert str(error) == f"{error.title}: {error.detail} (at {error.pointer}). {error.remedy}"
    elsewhere = {"target": {"uri": "file:///etc"}, "pairs": request_body["data"]["pairs"]}
    with pytest.raises(InvalidReference, match="outside"):
        client.jobs.submit(request_body | {"data": elsewhere}, weights)


def test_a_number_that_json_lacks_is_told_here(client: Client, request_body: dict[str, Any], weights: Path) -> None:
    for source_model in (weights, "model_" + 26 * "0"):
        with pytest.raises(ValueError, match="not JSON compliant"):
            client.jobs.submit(request_body | {"settings": {"weights": {"kl": float("nan")}}}, source_model)


def test_an_upload_that_the_service_does_not_take_is_refused(
    client: Client, request_body: dict[str, Any], tmp_path: Path
) -> None:
    large = tmp_path / "large.safetensors"
    large.write_bytes(bytes(2 * 2**20))
    with pytest.raises(Invalid) as caught:
        client.jobs.submit(request_body, large)
    assert caught.value.code == "payload_too_large"


def test_jobs_are_listed_over_pages_newest_first_and_filtered(client: Client, jobs: Jobs, proxy: Proxy) -> None:
    made = [jobs.queued(labels={"n": str(n), "parity": "even" if n % 2 == 0 else "odd"}) for n in range(5)]
    client.jobs.cancel(made[0])
    assert [job.id for job in client.jobs.list(page_size=2)] == made[::-1]
    assert [job.id for job in client.jobs.list(label={"parity": "even"}, status="queued")] == [made[4], made[2]]
    assert [job.id for job in client.jobs.list(status=["cancelled", "failed"])] == [made[0]]
    assert list(client.jobs.list(label={"n": "7"})) == []


def test_a_page_is_asked_for_when_it_is_needed(faulty: Client, jobs: Jobs, proxy: Proxy) -> None:
    made = [jobs.queued() for _ in range(3)]
    listed = faulty.jobs.list(page_size=2)
    assert proxy.seen == []
    assert [next(listed).id, next(listed).id] == made[:0:-1] and proxy.count("GET /jobs?") == 1
    assert next(listed).id == made[0] and proxy.count("GET /jobs?") == 2
    listed.close()


def test_cancelling_and_deleting(client: Client, jobs: Jobs) -> None:
    job = client.jobs.get(jobs.queued())
    with pytest.raises(JobActive):
        job.delete()
    assert job.cancel().status == "cancelled"
    with pytest.raises(JobFinished):
        job.cancel()
    job.delete()
    with pytest.raises(NotFound) as caught:
        job.refresh()
    assert caught.value.code == "not_found"


def test_an_id_is_no_path(client: Client, jobs: Jobs) -> None:
    jobs.queued()
    for odd in ("../source-models", "job_x?wait=30", "job x/ü"):
        with pytest.raises(NotFound):
            client.jobs.get(odd)


def test_waiting_tells_each_change_and_gives_the_job(client: Client, jobs: Jobs) -> None:
    job_id = jobs.queued()
    told: list[tuple[str, float | None]] = []

    def on_progress(job: Any) -> None:
        """The next thing happens as soon as this one was told."""
        told.append((job.status, job.progress and job.progress.fraction))
        if len(told) == 1:
            claims.append(jobs.claimed())
        elif len(told) == 2:
            jobs.advance(claims[0], phase="bridging", progress=PROGRESS)
        elif len(told) == 3:
            assert (job.phase, job.progress.of, job.progress.losses) == ("bridging", 600, {"L_rec": 0.1})
            jobs.succeed(claims[0])

    claims: list[Any] = []
    job = client.jobs.get(job_id).wait(timeout=20, on_progress=on_progress)
    assert told == [("queued", None), ("running", None), ("running", 0.11), ("succeeded", None)]
    assert (job.id, job.verdict, job.finished) == (job_id, "look_closer", True)
    assert [one.name for one in job.artifacts()] == ["model.safetensors"]


def test_waiting_holds_and_does_not_hammer(faulty: Client, proxy: Proxy, jobs: Jobs) -> None:
    claim = jobs.running()
    timer = threading.Timer(1.5, jobs.succeed, [claim])
    timer.start()
    began = time.monotonic()
    faulty.jobs.wait(claim.job_id)
    assert 1 < time.monotonic() - began < 5
    timer.join()
    assert proxy.count(f"GET /jobs/{claim.job_id}") == 2


def test_waiting_for_a_job_that_ends_without_a_model(client: Client, jobs: Jobs) -> None:
    claim = jobs.running()
    jobs.fail(claim)
    with pytest.raises(JobFailed, match="diverged") as failed:
        client.jobs.wait(claim.job_id)
    problem = failed.value.problem
    assert (problem.code, problem.detail) == ("training_diverged", "L_rec is nan at step 7")
    assert "learning rate" in problem.remedy and failed.value.job.status == "failed"
    job = client.jobs.get(jobs.queued()).cancel()
    with pytest.raises(JobCancelled) as cancelled:
        job.wait()
    assert cancelled.value.job.id == job.id


def test_waiting_ends_at_its_timeout_and_the_job_goes_on(client: Client, jobs: Jobs) -> None:
    job = client.jobs.get(jobs.queued())
    for seconds in (0, 0.6):
        began = time.monotonic()
        with pytest.raises(Timeout, match="queued"):
            job.wait(timeout=seconds)
        assert seconds <= time.monotonic() - began < seconds + 2
    assert job.refresh().status == "queued"


def test_waiting_outlasts_an_outage(connect: Callable[..., Client], proxy: Proxy, jobs: Jobs) -> None:
    claim = jobs.running()
    faulty = connect(proxy.url, retries=Retries(attempts=2, first_s=0.01, most_s=0.02))
    outage = [instead(503), lost, instead(502, {"Content-Type": "text/html"}, b"<html>"), instead(504), lost, instead(503)]
    proxy.faults += [(f"GET /jobs/{claim.job_id}", fault) for fault in outage]
    jobs.succeed(claim)
    assert faulty.jobs.wait(claim.job_id).status == "succeeded"
    assert proxy.faults == []


def test_a_service_that_does_not_answer_is_a_timeout(connect: Callable[..., Client], proxy: Proxy, jobs: Jobs) -> None:
    job_id = jobs.queued()
    hasty = connect(proxy.url, timeout=0.3, retries=Retries(attempts=2, first_s=0.01))
    proxy.faults += [(f"GET /jobs/{job_id}", silent)] * 2
    with pytest.raises(Timeout, match="did not answer in time"):
        hasty.jobs.get(job_id)
    assert proxy.count(f"GET /jobs/{job_id}") == 2
    assert hasty.jobs.get(job_id).id == job_id


def test_metrics_are_points_of_all_series_or_one(client: Client, jobs: Jobs) -> None:
    claim = jobs.running()
    given = {("bridging/L_rec", step): step / 10 for step in range(3)} | {("transferring/L_KL", 0): 0.7}
    with jobs.service.db.write() as session:
        lifecycle.record_metrics(session, claim, given, now=jobs.service.db.now(session))
    assert {(point.series, point.step): point.value for point in client.jobs.metrics(claim.job_id)} == given
    assert [point.value for point in client.jobs.metrics(claim.job_id, "bridging/L_rec")] == [0.0, 0.1, 0.2]
    with pytest.raises(NotFound):
        client.jobs.metrics("job_none")


def test_source_models_are_listed_read_and_deleted(client: Client, jobs: Jobs, weights: Path) -> None:
    described = {"architecture": "torchvision/resnet18", "classes": ["a", "b"]}
    models = [client.source_models.upload(weights, described | {"classes": ["a", str(n)]}) for n in range(3)]
    assert [model.id for model in client.source_models.list(page_size=2)] == [model.id for model in models[::-1]]
    assert client.source_models.get(models[0]).sha256 == models[0].sha256
    client.source_models.delete(models[0])
    with pytest.raises(NotFound):
        client.source_models.get(models[0].id)
    used = client.jobs.get(jobs.queued()).source_model_id
    with pytest.raises(Exception, match="still needs") as caught:
        client.source_models.delete(used)
    assert type(caught.value).__name__ == "SourceModelInUse"


def test_datasets_are_stored_named_by_jobs_and_deleted(
    client: Client, request_body: dict[str, Any], weights: Path, data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "hall.zip"
    archive.write_bytes(of_folder("zip", data))
    dataset = client.datasets.upload(archive, "hall 3")
    assert (dataset.name, dataset.format, dataset.uri) == ("hall 3", "zip", f"dataset://{dataset.id}")
    assert client.datasets.upload(str(archive)).id == dataset.id
    assert client.datasets.get(dataset).sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert [one.id for one in client.datasets.list(page_size=1)] == [dataset.id]
    request_body["data"]["target"] = {"uri": f"{dataset.uri}/target"}
    job = client.jobs.submit(request_body, weights)
    with pytest.raises(DatasetInUse, match="still needs"):
        client.datasets.delete(dataset)
    job.cancel()
    job.delete()
    client.datasets.delete(dataset.id)
    with pytest.raises(NotFound):
        client.datasets.get(dataset)
    archive.write_bytes(b"not an archive")
    with pytest.raises(InvalidArchive):
        client.datasets.upload(archive)


def test_a_service_without_a_worker_is_alive_and_not_ready(client: Client) -> None:
    client.alive()
    health = client.health()
    assert not health.ready and {part: outcome == "ok" for part, outcome in health.checks.items()} == {
        "database": True, "broker": True, "blobs": True, "worker": False,
    }  # fmt: skip
    assert "worker" in health.checks["worker"]
    assert client.openapi()["info"]["version"]


def test_what_waits_for_a_part_that_is_away_has_time_to_say_so(connect: Callable[..., Client], proxy: Proxy) -> None:
    proxy.faults += [("GET /readyz", late(1.5))]
    assert "worker" in connect(proxy.url, timeout=0.5).health().checks


def test_nothing_at_the_address_is_told_after_some_tries(connect: Callable[..., Client]) -> None:
    nobody = connect("http://127.0.0.1:9", retries=Retries(attempts=3, first_s=0.1, jitter=lambda: 1))
    began = time.monotonic()
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
        nobody.jobs.get("job_x")
    assert 0.3 < time.monotonic() - began < 2, "pauses of 0.1 and 0.2 s"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://"])
def test_what_is_no_address_is_refused_at_once(url: str, connect: Callable[..., Client]) -> None:
    with pytest.raises(ValueError, match="URL"):
        connect(url)
