"""The page of workers and queue."""

from __future__ import annotations

import re
from datetime import timedelta

import sqlalchemy as sa

from app.dashboard.formats import size
from app.database import Tenant
from app.jobs.table import Job, Worker
from tests.conftest import Service, serving
from tests.dashboard.html import Html, checked
from tests.dashboard.seeding import Jobs

Shown = tuple[Service, Jobs]


def read(service: Service) -> Html:
    answer = service.client.get("/dashboard/workers")
    assert answer.status_code == 200
    return checked(answer)


def test_it_tells_who_is_there_and_what_waits(changed: Shown) -> None:
    service, jobs = changed
    text = read(service).text
    assert re.search(r"Waiting jobs 1 Longest wait \d+ s Workers heard from 2 Idle workers 1", text)
    assert re.search(r"queued 1 running 1 cancelling 0 succeeded 2 failed 1 cancelled 1", text)
    assert re.search(r"worker_a machine-1, process 4711 CUDA, CPU a long one", text) and re.search(
        r"worker_b machine-2, process 12 CPU idle", text
    )
    assert "although a worker is idle" not in text
    with service.db.write() as session:
        session.execute(
            sa.update(Job).where(Job.id == jobs.queued).values(updated_at=service.db.now(session) - timedelta(minutes=5))
        )
    text = read(service).text
    assert "Longest wait 5 min" in text and "although a worker is idle" in text


def test_a_worker_that_is_silent_is_told_and_what_to_do_where_none_is_left(changed: Shown) -> None:
    service, _ = changed
    with service.db.write() as session:
        session.execute(sa.update(Worker).values(last_seen_at=service.db.now(session) - timedelta(minutes=3)))
    text = read(service).text
    assert "Workers heard from 0" in text and text.count("silent") == 2
    assert "No worker was heard from in the last 30 s" in text and "make worker" in text


def test_what_is_stored_is_told_and_that_nothing_more_can_be(changed: Shown) -> None:
    service, _ = changed
    assert "Stored –" in read(service).text, "no worker has counted it"
    with serving(service.settings.model_copy(update={"storage_bytes": 2**20})) as limited:
        for stored, full in ((2**19, False), (2**20, True)):
            with service.db.write() as session:
                session.execute(sa.update(Tenant).values(stored_bytes=stored))
            text = read(limited).text
            assert f"Stored {size(stored)} of {size(2**20)}" in text
            assert ("The storage is full" in text) == full


def test_what_another_tenant_has_is_not_told(changed: Shown) -> None:
    service, _ = changed
    with service.db.write() as session:
        session.execute(sa.text("INSERT INTO tenants (id, created_at) VALUES ('tenant_b', CURRENT_TIMESTAMP)"))
        session.execute(sa.update(Job).values(tenant_id="tenant_b"))
    page = read(service)
    assert "a long one" not in page.source
    assert re.search(r"Waiting jobs 0 Longest wait – ", page.text) and "running 0" in page.text


def test_its_numbers_come_alone_to_a_poll(shown: Shown) -> None:
    answer = shown[0].client.get("/dashboard/workers", headers={"HX-Request": "true"})
    assert "<html" not in answer.text
    checked(answer)
