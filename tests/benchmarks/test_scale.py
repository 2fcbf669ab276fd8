from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from app.jobs.states import Status
from app.jobs.table import Job
from benchmarks import scale
from tests.conftest import POSTGRES

SERVERS = pytest.mark.parametrize("server", ["", pytest.param(POSTGRES, marks=pytest.mark.postgres)])


@SERVERS
def test_every_question_finds_something_in_both(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["--server", server, "--rows", "400", "500", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert "| 400 rows | 500 rows |" in told
    for name in ("list", "list, failed", "list, by label", "list, from the middle", "poll", "read", "claim"):
        assert f"| {name} |" in told


@SERVERS
def test_a_claim_that_is_timed_is_taken_back(server: str, tmp_path: Path) -> None:
    queued = sa.select(sa.func.count()).where(Job.status == Status.QUEUED)
    with scale.database(server, tmp_path) as db:
        scale.fill(db, 400)
        with db.read() as session:
            before = session.scalar(queued)
        for name in scale.CLAIMS:
            assert scale.timed(db, name, scale.questions(400)[name]) > 0
        with db.read() as session:
            assert session.scalar(queued) == before > 0
