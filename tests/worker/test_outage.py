"""What is logged of something that is away."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from worker import outage
from worker.outage import Outage


def test_an_outage_is_told_when_it_begins_now_and_then_and_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Outage("the database is away", "the database is back")
    with capture_logs() as lines:
        database.over()
        for _ in range(100):
            database.goes_on(OSError("refused"))
        monkeypatch.setattr(outage, "AGAIN_S", 0.0)
        database.goes_on(OSError("refused again"))
        database.over()
        database.over()
    assert [(line["log_level"], line["event"], line.get("error")) for line in lines] == [
        ("warning", "the database is away", "refused"),
        ("warning", "the database is away", "refused again"),
        ("info", "the database is back", None),
    ]
