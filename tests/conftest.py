"""Real databases, built by Alembic; a real server on a free port."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from sqlalchemy.exc import DBAPIError

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: nets this small gain nothing from a second thread

from app import logs, schema
from app.blobs import Blobs
from app.database import Base, Database
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


@pytest.hookimpl(optionalhook=True)
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


SHAPE = """
SELECT md5(string_agg(line, chr(10) ORDER BY line)) FROM (
    SELECT concat_ws(' ', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull) AS line
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT version_num FROM alembic_version
    UNION ALL SELECT setconfig::text FROM pg_db_role_setting JOIN pg_database ON setdatabase = pg_database.oid
        WHERE datname = current_database()
) AS lines
"""
"""Of a database's tables, indexes, constraints and settings."""
TABLES = Base.metadata.sorted_tables


class Postgres:
    """Databases of the server, as the migrations leave them. To make and to drop one takes longer than most tests do, so one that
    comes back with its tables as they were gets its first rows back, and is given out again. A server that is missing fails the test,
    it does not skip it."""

    def __init__(self) -> None:
        self.template = f"modalbridge_template_{os.getpid()}"
        self.spare: list[str] = []
        with _administration() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{self.template}"'))
        db = Database(self.url(self.template))
        schema.upgrade(db)
        with db.read() as session:
            self.shape = session.scalar(sa.text(SHAPE))
            self.rows = {table: [dict(row) for row in session.execute(sa.select(table)).mappings()] for table in TABLES}
        db.dispose()

    def url(self, name: str) -> str:
        return sa.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)

    def take(self) -> str:
        """Its name."""
        if self.spare:
            return self.spare.pop()
        name = new_id("modalbridge")
        with _administration() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}" TEMPLATE "{self.template}"'))
        return name

    def give_back(self, name: str) -> None:
        if self._as_new(name):
            self.spare.append(name)
        else:
            self.drop(name)

    def _as_new(self, name: str) -> bool:
        engine = sa.create_engine(self.url(name), poolclass=sa.NullPool)
        try:
            with engine.begin() as connection:
                others = "pid <> pg_backend_pid() AND datname = current_database()"
                connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
                if connection.scalar(sa.text(SHAPE)) != self.shape:
                    return False
                for table in reversed(TABLES):
                    connection.execute(sa.delete(table))
                for table, rows in self.rows.items():
                    if rows:
                        connection.execute(sa.insert(table), rows)
        except DBAPIError:  # a test has left it so that nobody may connect, or without its tables
            return False
        return True

    def drop(self, *names: str) -> None:
        with _administration() as connection:
            for name in names:
                connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[Postgres]:
    databases = Postgres()
    yield databases
    databases.drop(*databases.spare, databases.template)


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
    with ExitStack() as giving_back:

        def make(kind: str) -> str:
            if kind == "sqlite":
                path = tmp_path / f"{new_id('db')}.db"
                path.write_bytes(request.getfixturevalue("sqlite_template").read_bytes())
                return f"sqlite:///{path}"
            databases: Postgres = request.getfixturevalue("postgres_databases")
            name = databases.take()
            giving_back.callback(databases.give_back, name)
            return databases.url(name)

        yield make


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
