"""What the front end tells Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from app import observability
from app.jobs import service as jobs
from app.jobs.table import Job, Worker
from app.settings import Settings
from tests.app.conftest import safetensors, submit
from tests.conftest import Service, serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: httpx.Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    found = {}
    for family in plain(answer.text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"modalbridge_{name}", frozenset(labels.items())))


def requests(samples: Samples) -> dict[tuple[str, str, str], float]:
    """Those that there were; a class of errors of ours has its series before the first."""
    found = {}
    for (name, labels), number in samples.items():
        if name == "modalbridge_http_requests_total":
            of = dict(labels)
            if number or of["status"] != "5xx":
                found[of["method"], of["route"], of["status"]] = number
    return found


def test_requests_are_counted_by_template_and_no_label_is_a_clients(service: Service) -> None:
    for n in range(3):
        service.client.get(f"/jobs/job_{n}")
        service.client.get(f"/nothing/{n}")
    service.client.get("/jobs/job_4?wait=0.1")
    service.client.get("/healthz")
    service.client.put("/healthz")
    service.client.request("TRACE", "/healthz")
    samples = scrape(service.client)
    assert requests(samples) == {
        ("GET", "/jobs/{job_id}", "4xx"): 3,
        ("GET", "/jobs/{job_id}?wait", "4xx"): 1,
        ("GET", "other", "4xx"): 3,
        ("GET", "/healthz", "2xx"): 1,
        ("PUT", "/healthz", "4xx"): 1,
        ("other", "/healthz", "4xx"): 1,
    }
    never = value(samples, "http_requests_total", route="/jobs/{job_id}", method="GET", status="5xx")
    assert never == 0, "there before the first, so that the first is an increase"
    assert value(samples, "http_request_duration_seconds_count", route="/jobs/{job_id}", method="GET") == 3
    assert requests(scrape(service.client))["GET", "/metrics", "2xx"] == 1, "the first scrape"


def test_jobs_workers_and_the_longest_wait_are_those_of_the_database(service: Service, request_body: dict[str, Any]) -> None:
    ids = [submit(service.client, request_body | {"seed": n}, safetensors()).json()["id"] for n in range(3)]
    service.client.post(f"/jobs/{ids[2]}/cancel")
    with service.db.write() as session:
        now = service.db.now(session)
        hours = [now - timedelta(hours=n) for n in range(4)]
        # The older one ran meanwhile, and has been waiting again since a minute ago.
        again = {"queued_at": hours[3], "updated_at": now - timedelta(minutes=1)}
        session.execute(sa.update(Job).where(Job.id == ids[0]).values(**again))
        session.execute(sa.update(Job).where(Job.id == ids[1]).values(queued_at=hours[1], updated_at=hours[1]))
        for name, job_id, seen in (("a", None, now), ("b", "job_x", now), ("c", "job_y", now), ("gone", None, hours[1])):
            worker = Worker(id=f"worker_{name}", host="here", pid=1, job_id=job_id, started_at=hours[3], last_seen_at=seen)
            session.add(worker)
    samples = scrape(service.client)
    counted = {status: value(samples, "jobs", status=status) for status in ("queued", "running", "succeeded", "cancelled")}
    assert counted == {"queued": 2, "running": 0, "succeeded": 0, "cancelled": 1}
    assert value(samples, "oldest_queued_job_age_seconds") == pytest.approx(3600, abs=60)
    assert (value(samples, "stored_bytes"), value(samples, "stored_bytes_limit")) == (0, float("inf"))
    assert (value(samples, "workers", state="busy"), value(samples, "workers", state="idle")) == (2, 1)
    assert value(samples, "database_up") == 1
    for job_id in ids[:2]:
        service.client.post(f"/jobs/{job_id}/cancel")
    assert value(scrape(service.client), "oldest_queued_job_age_seconds") == 0


def test_a_database_that_is_away_is_said_and_the_rest_still_told(service: Service) -> None:
    with service.db.write() as session:
        session.execute(sa.text("ALTER TABLE jobs RENAME TO gone"))
    with httpx.Client(base_url=service.url) as another:  # uvicorn ends a connection on which the unexpected happened
        assert another.get("/jobs").status_code in (500, 503)
    samples = scrape(service.client)
    assert value(samples, "database_up") == 0
    assert value(samples, "jobs", status="queued") is None, "unknown is not 0"
    assert requests(samples)["GET", "/jobs", "5xx"] == 1
    with service.db.write() as session:
        session.execute(sa.text("ALTER TABLE gone RENAME TO jobs"))
    assert value(scrape(service.client), "database_up") == 1


@pytest.mark.postgres
def test_a_database_that_hangs_costs_a_scrape_its_limit_and_one_thread(
    new_database_url: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observability, "LIMIT_S", 0.3)
    with serving(Settings(data_dir=tmp_path, database_url=new_database_url("postgres"))) as service:
        with service.db.write() as session:
            session.execute(sa.text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
            began = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                found = [value(samples, "database_up") for samples in pool.map(scrape, [service.client] * 8)]
            assert found == [0] * 8
            assert time.monotonic() - began < 5
            assert [thread.name for thread in threading.enumerate()].count("metrics") == 1
        while any(thread.name == "metrics" for thread in threading.enumerate()):
            time.sleep(0.01)
        assert value(scrape(service.client), "database_up") == 1


def test_a_stream_counts_when_it_begins(service: Service, request_body: dict[str, Any]) -> None:
    job_id = submit(service.client, request_body, safetensors()).json()["id"]
    with service.client.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        next(stream.iter_lines())
        assert requests(scrape(service.client))["GET", "/jobs/{job_id}/events", "2xx"] == 1
    jobs.cancel(service.db, "tenant_embedded", job_id)


def test_the_format_is_the_one_that_is_asked_for(service: Service) -> None:
    def get(accept: str | None) -> tuple[str, str]:
        answer = service.client.get("/metrics", headers={"Accept": accept} if accept else {})
        return answer.headers["content-type"].partition(";")[0], answer.text

    assert get(None)[0] == get("text/plain")[0] == "text/plain"
    kind, text = get("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert kind == "application/openmetrics-text"
    assert "modalbridge_http_requests" in {family.name for family in openmetrics(text)}
