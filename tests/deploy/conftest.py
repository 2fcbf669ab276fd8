"""The set-ups of tests/worker, and docker-compose.yml as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from app.ids import new_id
from deploy import compose, stack
from tests.conftest import POSTGRES
from tests.servers import Redis
from tests.worker.conftest import embedded, environment, small_data

__all__ = ["embedded", "environment", "small_data"]


@pytest.fixture(scope="session")
def services() -> dict[str, dict[str, Any]]:
    """With every secret set."""
    return compose.read(stack.SECRETS | {"MODALBRIDGE_DATA": "/images"})["services"]


@pytest.fixture
def database_url() -> Iterator[str]:
    """Of a database that is not there yet."""
    url = sa.make_url(POSTGRES)
    name = new_id("modalbridge_stack")
    yield url.set(database=name).render_as_string(hide_password=False)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


@pytest.fixture
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.kill()
