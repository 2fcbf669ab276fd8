"""Submitting, polling, listing, cancelling and deleting jobs, over HTTP. No worker runs here: jobs stay queued unless
the test claims them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from app.jobs import lifecycle
from app.jobs.table import Job
from tests.app.conftest import claim, publish, safetensors, submit
from tests.conftest import Service, serving


def test_one_multipart_call_submits_everything(service: Service, request_body: dict[str, Any]) -> None:
    answer = submit(service.client, request_body, safetensors())
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}" == job["links"]["self"]
    assert job["status"] == "queued" and job["attempt"] == 0
    assert job["request"]["settings"]["weights"]["rec"] == 1.0, "defaults are part of what was accepted"
    assert service.client.get(answer.headers["location"]).json() == job
    assert service.client.get(f"/source-models/{job['source_model_id']}").json()["sha256"]


def test_a_stored_model_is_named_by_its_id(service: Service, request_body: dict[str, Any]) -> None:
    first = submit(service.client, request_body, safetensors()).json()
    body = request_body | {"source_model": {"id": first["source_model_id"]}}
    answer = service.client.post("/jobs", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["source_model_id"] == first["source_model_id"]
    assert answer.json()["id"] != first["id"]


def stored(service: Service, request_body: dict[str, Any], seed: int, **changes: Any) -> str:
    """The id of a source model of its own."""
    parts = {
        "description": (None, json.dumps(request_body["source_model"] | changes), "application/json"),
        "source_model": ("model.safetensors", safetensors(seed=seed), "application/octet-stream"),
    }
    return service.client.post("/source-models", files=parts).json()["id"]


def test_several_source_models_are_named_by_their_ids_and_kept_while_the_job_is(
    service: Service, request_body: dict[str, Any]
) -> None:
    two, three = stored(service, request_body, 2, classes=["mug", "box"]), stored(service, request_body, 3)
    further = [{"id": three}, {"id": two}]
    job = submit(service.client, request_body | {"further_source_models": further}, safetensors()).json()
    assert job["request"]["further_source_models"] == further
    for model_id in (two, three):
        answer = service.client.delete(f"/source-models/{model_id}")
        assert (answer.status_code, answer.json()["code"]) == (409, "source_model_in_use")
        assert answer.json()["jobs"] == [job["id"]]
    service.client.post(f"/jobs/{job['id']}/cancel")
    assert service.client.delete(f"/jobs/{job['id']}").status_code == 204
    assert service.client.delete(f"/source-models/{two}").status_code == 204


def test_source_models_that_cannot_be_adapted_together_are_refused(service: Service, request_body: dict[str, Any]) -> None:
    bigger = stored(service, request_body, 2, input={"size": 64})
    others = stored(service, request_body, 3, classes=["box", "cup"])
    same = stored(service, request_body, 0)
    for further, status, code, pointer, words in [
        ([bigger], 422, "invalid_request", "/further_source_models/0", "input.size"),
        ([others], 422, "invalid_request", "/further_source_models/0", "cup, mug"),
        ([same], 422, "invalid_request", "/further_source_models/0/id", "the very model"),
        ([bigger, bigger], 422, "invalid_request", "/further_source_models/0/id", "more than once"),
        (["model_unknown"], 404, "not_found", "/further_source_models/0/id", "model_unknown"),
    ]:
        body = request_body | {"further_source_models": [{"id": one} for one in further]}
        answer = submit(service.client, body, safetensors())
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.json()["pointer"] == pointer and words in answer.json()["detail"]
    assert service.client.get("/jobs").json()["data"] == []


def test_outputs_are_accepted_in_one_order_with_safetensors_always_among_them(
    service: Service, request_body: dict[str, Any]
) -> None:
    for asked, accepted in [
        (None, ["safetensors"]),
        (["onnx"], ["safetensors", "onnx"]),
        (["onnx", "torch_export", "onnx", "safetensors"], ["safetensors", "torch_export", "onnx"]),
    ]:
        body = request_body | ({} if asked is None else {"outputs": asked})
        assert submit(service.client, body, safetensors()).json()["request"]["outputs"] == accepted
    wrong = submit(service.client, request_body | {"outputs": ["torchscript"]}, safetensors()).json()
    assert "the nearest known one is 'torch_export'; given: 'torchscript'" in wrong["detail"], wrong


def test_the_same_idempotency_key_gives_the_same_job(service: Service, request_body: dict[str, Any]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: submit(service.client, request_body, safetensors(), **{"Idempotency-Key": "k1"}), range(8))
        )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    with service.db.read() as session:
        assert session.scalar(sa.select(sa.func.count(Job.id))) == 1


def test_an_idempotency_key_with_another_request_is_a_conflict(service: Service, request_body: dict[str, Any]) -> None:
    submit(service.client, request_body, safetensors(), **{"Idempotency-Key": "k1"})
    other_request = submit(service.client, request_body | {"seed": 1}, safetensors(), **{"Idempotency-Key": "k1"})
    other_file = submit(service.client, request_body, safetensors(seed=1), **{"Idempotency-Key": "k1"})
    for answer in (other_request, other_file):
        assert answer.status_code == 409 and answer.json()["code"] == "idempotency_conflict"


def test_pollers_are_told_when_nothing_changed(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    first = service.client.get(url)
    assert first.headers["retry-after"]
    again = service.client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == first.headers["etag"]
    claim(service)
    changed = service.client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200 and changed.json()["status"] == "running" and changed.json()["phase"] == "preparing"


def test_a_held_poll_answers_as_soon_as_the_job_changes(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    timer = threading.Timer(0.7, claim, [service])
    timer.start()
    began = time.monotonic()
    answer = service.client.get(url, params={"wait": 20})
    timer.join()
    assert answer.json()["status"] == "running"
    assert 0.5 < time.monotonic() - began < 10
    unchanged = service.client.get(url, params={"wait": 0.5}, headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304


def test_a_running_job_shows_its_progress(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    claimed = claim(service)
    progress = {"phase": "bridging", "step": 120, "of": 600, "fraction": 0.11, "eta_s": 60.0, "losses": {"L_rec": 0.1}}
    with service.db.write() as session:
        lifecycle.record(session, claimed, now=service.db.now(session), phase="bridging", progress=progress)
        points = {("bridging/L_rec", step): step / 10 for step in range(5)} | {("bridging/L_D", 0): 0.7}
        lifecycle.record_metrics(session, claimed, points, now=service.db.now(session))
        lifecycle.record_metrics(session, claimed, {("bridging/L_rec", 4): 9.0}, now=service.db.now(session))
    job = service.client.get(url).json()
    assert job["progress"]["step"] == 120 and job["progress"]["of"] == 600 and job["progress"]["eta_s"] == 60
    page = service.client.get(url + "/metrics", params={"limit": 4}).json()
    rest = service.client.get(url + "/metrics", params={"limit": 4, "after": page["next"]}).json()
    points = [(p["series"], p["step"], p["value"]) for p in page["data"] + rest["data"]]
    assert points == [("bridging/L_D", 0, 0.7)] + [("bridging/L_rec", n, n / 10) for n in range(4)] + [("bridging/L_rec", 4, 9.0)]
    assert rest["next"] is None
    one = service.client.get(url + "/metrics", params={"series": "bridging/L_D"}).json()["data"]
    assert [point["series"] for point in one] == ["bridging/L_D"]


def test_the_list_is_newest_first_and_pages_without_gaps(service: Service, request_body: dict[str, Any]) -> None:
    ids = [submit(service.client, request_body | {"seed": n}, safetensors()).json()["id"] for n in range(5)]
    seen, after = [], None
    while True:
        page = service.client.get("/jobs", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["data"]]
        if (after := page["next"]) is None:
            break
    assert seen == ids[::-1]


def test_the_list_filters_by_status_and_label(service: Service, request_body: dict[str, Any]) -> None:
    robots = submit(service.client, request_body, safetensors()).json()["id"]
    drones = submit(service.client, request_body | {"labels": {"team": "drones", "site": "b"}}, safetensors()).json()["id"]
    claim(service)

    def listed(**params: Any) -> list[str]:
        return [job["id"] for job in service.client.get("/jobs", params=params).json()["data"]]

    assert listed(label="team:drones") == [drones]
    assert listed(label=["team:drones", "site:b"]) == [drones]
    assert listed(label=["team:robots", "site:b"]) == []
    assert listed(status="running") == [robots]
    assert listed(status=["queued", "running"]) == [drones, robots]
    assert service.client.get("/jobs", params={"status": "asleep"}).json()["code"] == "invalid_request"
    assert service.client.get("/jobs", params={"label": "team"}).json()["code"] == "invalid_request"
    assert service.client.get("/jobs", params={"after": "job_!"}).json()["code"] == "invalid_cursor"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["team:robots", "site:b", "team:drones"], "'team' has two values"),
        ([f"key{n}:x" for n in range(33)], "at most 32"),
        ([f"key{n}:x" for n in range(2000)], "at most 32"),
    ],
)
def test_labels_that_no_job_can_have_are_refused(service: Service, labels: list[str], words: str) -> None:
    answer = service.client.get("/jobs", params={"label": labels})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["pointer"]) == (422, "invalid_request", "/label"), answer.text
    assert words in problem["detail"]
    assert service.client.get("/jobs", params={"label": ["team:robots"] * 40}).status_code == 200, "the same one again is one"


def test_a_queued_job_is_cancelled_at_once(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    answer = service.client.post(url + "/cancel")
    assert answer.status_code == 202 and answer.json()["status"] == "cancelled" and answer.json()["finished_at"]
    again = service.client.post(url + "/cancel")
    assert again.status_code == 409 and again.json()["code"] == "job_finished"


def test_a_running_job_is_asked_to_stop(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    claim(service)
    for _ in range(2):
        answer = service.client.post(url + "/cancel")
        assert answer.status_code == 202 and answer.json()["status"] == "cancelling"
    refused = service.client.delete(url)
    assert refused.status_code == 409 and refused.json()["code"] == "job_active"


def test_a_failed_or_cancelled_job_is_tried_again_and_keeps_its_history(service: Service, request_body: dict[str, Any]) -> None:
    job = submit(service.client, request_body, safetensors()).json()
    url = f"/jobs/{job['id']}"
    assert service.client.post(f"{url}/retry").json()["code"] == "not_retryable", "it is queued"
    held = claim(service)
    answer = service.client.post(f"{url}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_retryable") and "running" in answer.json()["detail"]
    with service.db.write() as session:
        lifecycle.fail(session, held, {"code": "disk_full", "title": "x", "detail": "x"}, now=service.db.now(session))
    answer = service.client.post(f"{url}/retry")
    assert answer.status_code == 202, answer.text
    assert (answer.json()["status"], answer.json()["error"], answer.json()["attempt"]) == ("queued", None, 1)
    assert service.client.post(f"{url}/cancel").json()["status"] == "cancelled"
    assert service.client.post(f"{url}/retry").json()["status"] == "queued"
    words = [event["message"] for event in service.client.get(f"{url}/events").json()["data"]]
    assert words.count("queued again by a client") == 2 and any(word.startswith("failed") for word in words)
    answer = service.client.post("/jobs/job_unknown/retry")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    publish(service, claim(service))
    assert service.client.post(f"{url}/retry").json()["code"] == "not_retryable"


def test_delete_takes_the_artifacts_along(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    publish(service, claim(service))
    model = service.client.get(url).json()["source_model_id"]
    in_use = service.client.delete(f"/source-models/{model}")
    assert in_use.status_code == 409 and in_use.json()["code"] == "source_model_in_use"
    assert service.client.get(url + "/model").content == b"weights"
    assert service.client.delete(url).status_code == 204
    for gone in (url, url + "/model", url + "/events", url + "/metrics", url + "/artifacts"):
        assert service.client.get(gone).status_code == 404
    assert not [path for path in service.blobs.kept.rglob("*") if path.is_file() and "jobs" in path.parts]
    assert service.client.delete(f"/source-models/{model}").status_code == 204
    assert not [path for path in service.blobs.kept.rglob("*") if path.is_file()]


def test_events_are_paged_and_streamed(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    claimed = claim(service)
    page = service.client.get(url + "/events", params={"limit": 1}).json()
    assert [event["message"] for event in page["data"]] == ["queued"]
    rest = service.client.get(url + "/events", params={"after": page["next"]}).json()
    assert [event["data"]["status"] for event in rest["data"]] == ["running"]

    lines: list[str] = []
    with service.client.stream("GET", url + "/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "1"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            lines.append(line)
            if line.startswith("id: 2"):
                publish(service, claimed)  # the stream goes on, tells of it, and ends
    assert [line for line in lines if line.startswith("id:")] == ["id: 2", "id: 3"]
    assert "succeeded" in next(line for line in reversed(lines) if line.startswith("data:"))


def test_a_stream_ends_when_its_life_is_over(service: Service, request_body: dict[str, Any]) -> None:
    settings = service.settings.model_copy(update={"stream_limit_s": 0.6})
    with serving(settings) as short:
        url = submit(short.client, request_body, safetensors()).headers["location"]
        began = time.monotonic()
        with short.client.stream("GET", url + "/events", headers={"Accept": "text/event-stream"}) as stream:
            lines = list(stream.iter_lines())
    assert "id: 1" in lines and 0.5 < time.monotonic() - began < 10


def test_other_tenants_jobs_are_not_there(service: Service, request_body: dict[str, Any]) -> None:
    url = submit(service.client, request_body, safetensors()).headers["location"]
    with service.db.write() as session:
        session.execute(sa.text("INSERT INTO tenants (id, created_at) VALUES ('tenant_b', CURRENT_TIMESTAMP)"))
        session.execute(sa.update(Job).values(tenant_id="tenant_b"))
    for gone in (url, url + "/events", url + "/metrics", url + "/artifacts", url + "/model"):
        assert service.client.get(gone).status_code == 404
    assert service.client.post(url + "/cancel").status_code == 404
    assert service.client.delete(url).status_code == 404
    assert service.client.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("path", ["/jobs/job_nothing", "/nowhere", "/jobs/%00"])
def test_what_is_not_there_is_a_problem_document(service: Service, path: str) -> None:
    answer = service.client.get(path)
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found" and answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("address", ["/jobs", "/source-models", "/datasets", "/webhooks"])
def test_a_filter_that_is_not_known_is_refused_and_not_passed_over(service: Service, address: str) -> None:
    answer = service.client.get(address, params={"limits": 3})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["pointer"]) == (422, "unknown_field", "/limits")
    assert "'limit'" in problem["detail"]


def test_a_null_character_in_a_query_is_a_problem_document(service: Service) -> None:
    answer = service.client.get("/jobs?label=a%00:b")
    assert answer.status_code == 422 and answer.json()["code"] == "invalid_request"
