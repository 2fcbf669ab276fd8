"""A front end whose PostgreSQL hangs: it takes what is sent to it, and answers nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app import database, health, schema
from app.database import Database
from app.settings import Settings
from tests.app.test_health import hear_from_a_worker
from tests.conftest import Service, serving
from tests.servers import Postgres, postgres

THREADS = 40
"""In which Starlette runs what may wait."""


@pytest.fixture
def of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Postgres, Service]]:
    """A server that may be frozen, and a front end that waits for it a while, but not as long as in production."""
    monkeypatch.setattr(database, "ANSWER_S", 8.0)
    monkeypatch.setattr(health, "LIMIT_S", 2.0)
    with postgres(tmp_path / "postgres.log") as server:
        db = Database(server.url)
        schema.upgrade(db)
        db.dispose()
        with serving(Settings(data_dir=tmp_path / "var", database_url=server.url)) as service:
            yield server, service


@pytest.mark.postgres
def test_it_says_so_at_once_and_answers_again_when_the_database_does(of_its_own: tuple[Postgres, Service]) -> None:
    server, service = of_its_own
    hear_from_a_worker(service)
    assert service.client.get("/readyz").status_code == 200

    def timed(path: str) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        return service.client.get(path), time.monotonic() - began

    with ThreadPoolExecutor(THREADS + 10) as pool:
        with server.frozen():
            requests = [pool.submit(timed, "/jobs") for _ in range(THREADS + 5)]
            time.sleep(1)  # they hold every thread
            ready, seconds = timed("/readyz")
            assert (ready.status_code, ready.json()["code"]) == (503, "not_ready") and seconds < 4
            checks = ready.json()["checks"]
            assert {name for name, outcome in checks.items() if outcome == "ok"} == {"broker", "blobs"}
            assert "no answer within 2 s" in checks["database"]
            scraped, seconds = timed("/metrics")
            assert scraped.status_code == 200 and "modalbridge_database_up 0.0" in scraped.text and seconds < 7
            assert timed("/healthz")[0].status_code == 200
            answers = [request.result() for request in requests]
        for answer, seconds in answers:
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), answer.text
            assert answer.headers["retry-after"] and seconds < 8 + 2 * database.POSTGRESQL["connect_timeout"] + 5
    assert service.client.get("/jobs").status_code == 200
    assert service.client.get("/readyz").json()["status"] == "ok"
    assert "modalbridge_database_up 1.0" in service.client.get("/metrics").text
