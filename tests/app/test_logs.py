"""What an unexpected error leaves in the log, and what a line looks like."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
from opentelemetry.sdk.trace import TracerProvider
from structlog.contextvars import bound_contextvars

from app import logs
from app.settings import Settings
from tests.conftest import serving


@pytest.mark.postgres
def test_an_unexpected_error_is_logged_with_its_traceback_at_once_and_without_what_the_client_sent(
    new_database_url: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Settings(data_dir=tmp_path, database_url=new_database_url("postgres"))) as service:
        with service.db.write() as session:
            session.execute(sa.text("ALTER TABLE jobs RENAME TO gone"))
        began = time.monotonic()
        answer = service.client.get("/jobs", params={"label": "team:a-clients-own-word"})
        assert time.monotonic() - began < 5
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    logged = capsys.readouterr().out
    assert answer.json()["request_id"] in logged
    assert "Traceback (most recent call last)" in logged and "UndefinedTable" in logged
    assert "─ locals ─" not in logged and "a-clients-own-word" not in logged


@pytest.fixture
def as_json() -> Iterator[None]:
    logs.configure("json")
    yield
    logs.configure()


def test_a_line_as_json_has_the_job_the_trace_and_a_traceback(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    with bound_contextvars(job_id="job_1"), TracerProvider().get_tracer("test").start_as_current_span("attempt") as span:
        log.info("it\nbegins", error="ünd")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("it failed")
    log.info("over")
    begins, failed, over = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    context = span.get_span_context()
    ids = {"job_id": "job_1", "trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    assert begins == ids | {"event": "it\nbegins", "error": "ünd", "level": "info", "timestamp": begins["timestamp"]}
    assert begins["timestamp"].endswith("Z")
    assert failed["exception"].startswith("Traceback") and failed["exception"].endswith("ValueError: broken")
    assert over.keys() == {"event", "level", "timestamp"}


def test_what_a_library_or_python_warns_of_is_json_too(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import logging, warnings; from app import logs; logs.configure('json'); "
    code += "logging.getLogger('a.library').error('it is away'); warnings.warn('of old')"
    subprocess.run([sys.executable, "-c", code], check=True)
    away, old = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (away["event"], away["level"]) == ("it is away", "error")
    assert "UserWarning: of old" in old["event"]


def test_a_line_of_text_can_be_searched_where_it_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger().info("attempt begins", job_id="job_1")
    assert "[info     ] attempt begins" in (line := capsys.readouterr().out) and "job_id=job_1" in line
