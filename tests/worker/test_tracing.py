"""Traces as a receiver gets them: of a real front end, a real worker and a real job."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.processes import end, free_port, start, until_ready
from tests.adaptation.conftest import CLASSES, SIZE
from tests.otlp import Received, Receiver, receiver
from tests.worker.conftest import embedded_in
from tests.worker.embedded import wait_for

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FROM_CLIENT = f"00-{TRACE}-{CLIENT}-01"
CHILD = ["start", "preparing", "bridging", "transferring", "evaluating", "publishing"]


@dataclass
class Traced:
    """What came of two jobs: the receiver was there for the first, and gone when the second was sent."""

    receiver: Receiver
    job: dict[str, Any]
    second: dict[str, Any]
    second_post_s: float
    stop_s: float
    codes: dict[str, int]
    page: str
    log: str
    front_log: str

    @property
    def spans(self) -> list[Received]:
        return self.receiver.of(TRACE)

    def span(self, name: str) -> Received:
        (found,) = [span for span in self.spans if span.name == name]
        return found


def post(client: httpx.Client, data: Path, headers: dict[str, str], **changes: Any) -> str:
    request = {
        "source_model": {"architecture": "timm/test_resnet", "classes": CLASSES, "input": {"size": SIZE}},
        "data": {
            name: {"uri": f"file://{data}/{name}", "scaling": {"kind": "millimetres", "high": 5000}}
            for name in ("target", "pairs")
        },
        "settings": {
            "precision": "fp32",
            "bridging": {"steps": 4, "batch_size": 8, "validate_every": 4, "calibration": "never"},
            "transfer": {"epochs": 1, "batch_size": 16},
        },
        "device": "cpu",
    } | changes
    weights = ("source.safetensors", (data / "source.safetensors").read_bytes())
    parts = {"request": (None, json.dumps(request), "application/json"), "source_model": weights}
    answer = client.post("/jobs", files=parts, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def over(client: httpx.Client, address: str) -> dict[str, Any]:
    until = time.monotonic() + 90
    while (job := client.get(address, params={"wait": 5}).json())["status"] in ("queued", "running"):
        assert time.monotonic() < until, job
    return job


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, small_data: Path) -> Traced:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "modalbridge.db").write_bytes(sqlite_template.read_bytes())
    with (
        pytest.MonkeyPatch.context() as patch,
        embedded_in(folder, f"sqlite:///{folder}/modalbridge.db", small_data) as embedded,
        ExitStack() as listening,
    ):
        receiving, logs = listening.enter_context(receiver()), embedded.settings.data_dir
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=of-the-receiver")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        uvicorn = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(port)]
        front = start(uvicorn, embedded.environment(), logs / "front-end.log")
        try:
            with embedded.worker() as worker, httpx.Client(base_url=url, timeout=30) as client:
                until_ready(url, {"front-end": front, "workers": worker}, logs)
                address = post(client, small_data, {"traceparent": FROM_CLIENT})
                job = over(client, address)
                page = client.get(f"/dashboard{address}").text
                client.get(f"{address}/events", headers={"traceparent": FROM_CLIENT})
                names = {"POST /jobs", "GET /jobs/{job_id}/events", "attempt"}
                wait_for(lambda: names <= {span.name for span in receiving.of(TRACE)}, "the trace", 15)
                listening.close()
                with socket.create_server(("127.0.0.1", int(receiving.url.rpartition(":")[2]))):  # takes spans, and never answers
                    began = time.monotonic()
                    address = post(client, small_data, {}, method="source_only")
                    post_s = time.monotonic() - began
                    second = over(client, address)
                    began = time.monotonic()
                    for process in (front, worker):
                        process.send_signal(signal.SIGTERM)
                    codes = {"front end": front.wait(60), "worker": worker.wait(60)}
                    stop_s = time.monotonic() - began
        finally:
            end([front])
        told = [(logs / name).read_text() for name in ("workers.log", "front-end.log")]
    return Traced(receiving, job, second, post_s, stop_s, codes, page, *told)


def test_all_of_a_job_is_one_trace_that_begins_with_the_client(traced: Traced):
    assert traced.job["status"] == "succeeded", traced.job
    names = {span.span_id: span.name for span in traced.spans} | {CLIENT: "the client"}
    assert len(names) == len(traced.spans) + 1
    tree = {(names[span.parent], span.name) for span in traced.spans}
    assert tree == {
        ("the client", "POST /jobs"),
        ("the client", "GET /jobs/{job_id}/events"),
        ("POST /jobs", "send jobs"),
        ("POST /jobs", "queued"),
        ("POST /jobs", "attempt"),
        *(("attempt", name) for name in ("fetch", *CHILD, "publish")),
    }
    assert [traced.span(name).kind for name in ("POST /jobs", "send jobs", "attempt", "bridging")] == [
        "SERVER", "PRODUCER", "CONSUMER", "INTERNAL",
    ]  # fmt: skip
    assert not any(span.error for span in traced.spans)
    of_front_end = {span.name for span in traced.spans if span.service == "modalbridge-front-end"}
    assert of_front_end == {"POST /jobs", "GET /jobs/{job_id}/events", "send jobs"}
    assert {span.service for span in traced.spans} == {"modalbridge-front-end", "modalbridge-worker"}


def test_what_a_job_goes_through_is_in_order(traced: Traced):
    attempt, queued = traced.span("attempt"), traced.span("queued")
    parts = [traced.span(name) for name in ("fetch", *CHILD, "publish")]
    for earlier, later in pairwise(parts):
        assert earlier.start < earlier.end <= later.start < later.end
    assert attempt.start <= parts[0].start and parts[-1].end <= attempt.end
    assert traced.span("POST /jobs").start <= queued.start <= queued.end <= attempt.start
    assert sum(span.end - span.start for span in parts) > 0.5 * (attempt.end - attempt.start), "they tell where the time went"


def test_its_spans_say_whose_they_are_and_what_was_done(traced: Traced):
    job_id = traced.job["id"]
    assert all(span.attributes["modalbridge.job.id"] == job_id for span in traced.spans if not span.name.startswith("GET"))
    told = traced.span("attempt").attributes
    assert told["modalbridge.attempt"] == "1" and told["modalbridge.method"] == "tgmb_tgkt"
    assert told["modalbridge.outcome"] == "succeeded" and told["modalbridge.device"] == "cpu"
    assert told["modalbridge.worker.id"].startswith("worker_")
    bridging = traced.span("bridging").attributes
    assert (bridging["modalbridge.step"], bridging["modalbridge.steps"]) == ("4", "4")
    assert bridging["modalbridge.images_per_second"] > 0
    sent = traced.span("send jobs").attributes
    assert (sent["messaging.system"], sent["messaging.destination.name"]) == ("filesystem", "jobs")
    assert traced.span("POST /jobs").attributes["http.response.status_code"] == "202"


def test_polls_are_no_traces_and_the_receiver_is_given_its_key(traced: Traced):
    assert {span.trace_id for span in traced.receiver.spans} == {TRACE}
    assert {headers["api-key"] for headers in traced.receiver.headers} == {"of-the-receiver"}


def test_a_job_says_where_its_trace_is(traced: Traced):
    assert traced.job["trace_id"] == TRACE and TRACE in traced.page
    assert re.fullmatch(r"[0-9a-f]{32}", traced.second["trace_id"]) and traced.second["trace_id"] != TRACE


def test_a_workers_log_names_job_and_trace(traced: Traced):
    (line,) = [line for line in traced.log.splitlines() if "attempt begins" in line and traced.job["id"] in line]
    assert f"trace_id={TRACE}" in line and f"span_id={traced.span('attempt').span_id}" in line
    (line,) = [line for line in traced.log.splitlines() if "attempt ends" in line and traced.job["id"] in line]
    assert "attempt=1" in line and "status=succeeded" in line


def test_a_receiver_that_does_not_answer_costs_neither_a_request_nor_a_job_nor_the_end(traced: Traced):
    assert traced.second["status"] == "succeeded", traced.second
    assert traced.second_post_s < 10, "the exporter waits as long for an answer, before it tries again"
    assert traced.codes == {"front end": -signal.SIGTERM, "worker": 0}, "uvicorn ends by the signal that it has heeded"
    assert "Application shutdown complete" in traced.front_log
    assert traced.stop_s < 30, "docker-compose.yml gives the front end as long"
