"""A small data set, made once; an embedded set-up for each test, and the assertion that nothing is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.blobs import open_blobs
from app.database import Database
from app.jobs.states import TERMINAL
from app.settings import Settings
from tests.adaptation.conftest import make, one_thread
from tests.conftest import BOTH
from tests.worker.embedded import Embedded, processes_that_name
from worker import workspace

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make(tmp_path_factory.mktemp("small"))


@contextmanager
def embedded_in(folder: Path, url: str, data: Path, **changes: str) -> Iterator[Embedded]:
    settings = Settings(
        data_dir=folder / "var",
        database_url=url,
        data_roots=(data,),
        lease_s=3,
        housekeeping_s=0.5,
        lost_backoff_s=0,
        worker_silent_s=3,
        cancel_grace_s=3,
        checkpoint_s=0.01,
        **changes,
    )
    db, blobs = Database(settings.sqlalchemy_url), open_blobs(settings)
    blobs.prepare()
    made = Embedded(settings, db, blobs, data)
    yield made
    try:
        nothing_is_left(made)
    finally:
        db.dispose()


def nothing_is_left(made: Embedded) -> None:
    """No process, no half-written file, no scratch of a job that is over."""
    assert processes_that_name(str(made.settings.data_dir)) == []
    assert list(made.blobs.aside.iterdir()) == []
    assert list(made.settings.broker_dir.rglob("*.partial")) == []
    over = [job_id for job_id in workspace.jobs_here(made.settings.work_dir) if made.job(job_id).status in TERMINAL]
    assert over == [], "work folders of jobs that are over"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this process learn as little as those of a worker; nets this small gain nothing from a second thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def embedded(tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path) -> Iterator[Embedded]:
    """Over SQLite."""
    with embedded_in(tmp_path, new_database_url("sqlite"), small_data) as made:
        yield made


@pytest.fixture(params=BOTH)
def embedded_both(
    request: pytest.FixtureRequest, tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path
) -> Iterator[Embedded]:
    """Over SQLite, and over PostgreSQL."""
    with embedded_in(tmp_path, new_database_url(request.param), small_data) as made:
        yield made
