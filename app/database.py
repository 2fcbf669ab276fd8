"""Sessions and column types over SQLite and PostgreSQL. One request or step is one transaction: `with db.write() as s`.

SQLite: WAL, foreign keys on; a writing transaction takes the write lock at its start (BEGIN IMMEDIATE), so that a
read-then-write inside it cannot meet SQLITE_BUSY half way. PostgreSQL: READ COMMITTED; every state change is a
compare-and-set in one statement, so it needs no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker


class Base(DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Timestamp(sa.types.TypeDecorator[datetime]):
    """An instant: UTC in Python, whatever TimeZone a server has. timestamptz in PostgreSQL, UTC text of one width in SQLite so
    that it sorts."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


class Tenant(Base):
    """Whose rows they are. The embedded set-up has one."""

    __tablename__ = "tenants"

    id: sa.orm.Mapped[str] = sa.orm.mapped_column(sa.String(40), primary_key=True)
    created_at: sa.orm.Mapped[datetime] = sa.orm.mapped_column(Timestamp)
    stored_bytes: sa.orm.Mapped[int | None] = sa.orm.mapped_column(sa.BigInteger)
    """In the blob store: app/storage.py. None: not counted yet."""
    stored_counted_at: sa.orm.Mapped[datetime | None] = sa.orm.mapped_column(Timestamp)


EMBEDDED_TENANT = "tenant_embedded"


POSTGRESQL = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""libpq's, in seconds, and the last in milliseconds: a connection whose other end is gone without a word (a machine that lost its
power, a firewall that forgot it) fails within a minute, in place of a quarter of an hour or never."""

ANSWER_S = 30.0
"""For one statement of a request, as SQLite has for its lock. A server that hangs while its machine lives acknowledges every packet: TCP
finds nothing wrong, and libpq waits for ever."""


class Database:
    """answer_s: see ANSWER_S; None waits for as long as it takes, as an index that is built or a long deletion does."""

    def __init__(self, url: str, answer_s: float | None = None) -> None:
        self.url = sa.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(
            self.url,
            pool_pre_ping=not self.is_sqlite,
            hide_parameters=True,  # an error's text goes to the log, and a client's words do not
            pool_size=20,
            max_overflow=30,
            connect_args={"timeout": 30} if self.is_sqlite else POSTGRESQL,
        )
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        elif answer_s is not None:
            from app import bounded  # its driver is not there where only SQLite is

            event.listen(self.engine, "do_connect", lambda _, __, args, given: bounded.connect(answer_s, *args, **given))
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        # READ COMMITTED looks anew at each statement, inside a transaction or not: without one, a look is two round trips less.
        looking = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._looks = sessionmaker(looking, expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Nothing is kept. In SQLite all of it is of one moment; in PostgreSQL each statement is, as in a transaction there."""
        with self._looks() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any exception."""
        with self._sessions.begin() as session:
            session.connection(execution_options={"sqlite_begin": "BEGIN IMMEDIATE"})
            yield session

    def now(self, session: Session) -> datetime:
        """The database's clock, so that machines need not agree. SQLite is a local file: its clock is this machine's."""
        return datetime.now(UTC) if self.is_sqlite else session.scalar(sa.select(sa.func.clock_timestamp(type_=Timestamp)))

    def dispose(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own: _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
