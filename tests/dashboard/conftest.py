"""A front end with jobs in every state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.settings import Settings
from tests.app.conftest import make_data
from tests.browser import browser, open_page  # noqa: F401 - fixtures
from tests.conftest import Service, serving
from tests.dashboard.seeding import Jobs, seeded


@contextmanager
def front_end(folder: Path, template: Path) -> Iterator[Service]:
    root = folder / "data"
    root.mkdir()
    database = folder / "modalbridge.db"
    database.write_bytes(template.read_bytes())
    with serving(Settings(data_dir=folder / "var", database_url=f"sqlite:///{database}", data_roots=(root,))) as running:
        yield running


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[tuple[Service, Jobs]]:
    """For tests that change nothing."""
    with front_end(tmp_path_factory.mktemp("dashboard"), sqlite_template) as service:
        yield service, seeded(service, steps=100_000)


@pytest.fixture
def changed(tmp_path: Path, sqlite_template: Path) -> Iterator[tuple[Service, Jobs]]:
    """For tests that change something."""
    with front_end(tmp_path, sqlite_template) as service:
        yield service, seeded(service)


@pytest.fixture
def data(data_root: Path) -> Path:
    return make_data(data_root)
