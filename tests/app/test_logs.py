"""What an unexpected error leaves in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

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
