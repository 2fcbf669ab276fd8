"""Real databases, built by Alembic; a real server on a free port."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import uvicorn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: nets this small gain nothing from a second thread

from app import logs, schema
from app.blobs import Blobs
from app.database import Database
from app.ids import new_id
from app.main import create_app
from app.settings import Settings
from tests import s3

pytest.register_assert_rewrite("tests.browser")
POSTGRES = os.environ.get("MODALBRIDGE_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
logs.configure()  # as every process of the service does
BOTH = [pytest.param("sqlite"), pytest.param("postgres", marks=pytest.mark.postgres)]
on_sqlite = pytest.mark.parametrize("service", ["sqlite"], indirect=True)
"""For what is answered without the database: which one it is cannot matter."""


def pytest_xdist_auto_num_workers() -> int:
    """More than there are cores: half of a test is waiting, for a server to come up or a lease to run out."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device its tests are deselected, and counted as such."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch  # only where there is something to ask it: it takes seconds to import

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


@contextmanager
def _administration() -> Iterator[sa.Connection]:
    engine = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[str]:
    """A migrated database to copy from. A server that is missing fails the test, it does not skip it."""
    name = f"modalbridge_template_{os.getpid()}"
    with _administration() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    db = Database(sa.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False))
    schema.upgrade(db)
    db.dispose()
    yield name
    with _administration() as connection:
        connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "modalbridge.db"
    db = Database(f"sqlite:///{path}")
    schema.upgrade(db)
    db.dispose()
    return path


@pytest.fixture
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """kind -> the URL of a migrated, empty database of its own."""
    made: list[str] = []

    def make(kind: str) -> str:
        if kind == "sqlite":
            path = tmp_path / f"{new_id('db')}.db"
            path.write_bytes(request.getfixturevalue("sqlite_template").read_bytes())
            return f"sqlite:///{path}"
        template, name = request.getfixturevalue("postgres_template"), new_id("modalbridge")
        with _administration() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
        made.append(name)
        return sa.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)

    yield make
    with _administration() if made else _nothing() as connection:
        for name in made:
            connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest, new_database_url: Callable[[str], str]) -> Iterator[Database]:
    db = Database(new_database_url(request.param))
    yield db
    db.dispose()


@dataclass
class Service:
    """A front end that really listens."""

    url: str
    settings: Settings
    client: httpx.Client
    db: Database
    blobs: Blobs


@contextmanager
def serving(settings: Settings) -> Iterator[Service]:
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the front end did not start"
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            yield Service(url, settings, client, app.state.db, app.state.blobs)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
        assert not thread.is_alive(), "the front end did not stop"


@pytest.fixture(scope="session")
def new_bucket() -> Iterator[Callable[[str], s3.Bucket]]:
    with s3.server() as new:
        yield new


@pytest.fixture
def bucket(new_bucket: Callable[[str], s3.Bucket], monkeypatch: pytest.MonkeyPatch) -> s3.Bucket:
    """Of a real S3-speaking server; the credentials are in the environment, as an operator would put them there."""
    for name, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return new_bucket(new_id("bucket").replace("_", "-"))


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    return root


@pytest.fixture(params=BOTH)
def service(
    request: pytest.FixtureRequest, new_database_url: Callable[[str], str], tmp_path: Path, data_root: Path
) -> Iterator[Service]:
    """A front end over an empty database, its data root at `data_root`."""
    settings = Settings(data_dir=tmp_path / "var", database_url=new_database_url(request.param), data_roots=(data_root,))
    with serving(settings) as running:
        yield running
