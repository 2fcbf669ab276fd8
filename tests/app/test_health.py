"""Liveness and readiness."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.database import Database
from app.jobs.table import Worker
from app.main import create_app
from app.settings import Settings
from tests.conftest import Service


def hear_from_a_worker(service: Service) -> None:
    with service.db.write() as session:
        now = service.db.now(session)
        session.add(Worker(id="worker_a", host="here", pid=1, started_at=now, last_seen_at=now))


def test_alive(service: Service) -> None:
    assert service.client.get("/healthz").json() == {"status": "ok"}


def test_a_monitor_may_ask_for_the_head_alone(service: Service) -> None:
    assert (service.client.head("/healthz").status_code, service.client.head("/readyz").status_code) == (200, 503)
    hear_from_a_worker(service)
    answer = service.client.head("/readyz")
    assert (answer.status_code, answer.content) == (200, b"")


def test_ready_once_a_worker_is_heard_from(service: Service) -> None:
    early = service.client.get("/readyz")
    assert early.status_code == 503 and early.json()["code"] == "not_ready"
    assert early.json()["checks"]["worker"] != "ok" and early.json()["checks"]["database"] == "ok"
    hear_from_a_worker(service)
    assert service.client.get("/readyz").json()["status"] == "ok"


def test_each_part_that_fails_is_named(service: Service) -> None:
    hear_from_a_worker(service)
    shutil.rmtree(service.settings.broker_dir)
    shutil.rmtree(service.blobs.folder)
    service.blobs.folder.write_text("in the way")
    with service.db.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    checks = service.client.get("/readyz").json()["checks"]
    assert {name for name, outcome in checks.items() if outcome != "ok"} == {"broker", "blobs", "database"}
    assert "make migrate" in checks["database"]


def test_a_part_for_which_there_was_no_thread_is_asked_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    hear_from_a_worker(service)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "database":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        told = service.client.get("/readyz")
    assert told.status_code == 503 and told.json()["checks"] == {
        "database": "RuntimeError: can't start new thread", "broker": "ok", "blobs": "ok", "worker": "ok",
    }  # fmt: skip
    assert service.client.get("/readyz").json()["status"] == "ok"


async def _start(settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pass


def test_a_schema_that_is_not_known_is_refused_at_the_start(tmp_path: Path) -> None:
    import asyncio

    settings = Settings(data_dir=tmp_path)
    with pytest.raises(RuntimeError, match="make migrate"):
        asyncio.run(_start(settings))
    Database(settings.sqlalchemy_url).dispose()


def test_the_front_end_imports_no_torch() -> None:
    import subprocess

    script = "import sys, app.main; print([name for name in sys.modules if name.split('.')[0] in ('torch', 'torchvision', 'numpy', 'worker')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
