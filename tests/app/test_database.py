"""What a look and a transaction are, over both databases."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from app.database import EMBEDDED_TENANT, Database, Tenant

KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
STORED = sa.select(Tenant.stored_bytes).where(Tenant.id == EMBEDDED_TENANT)


@pytest.mark.postgres
def test_a_look_at_postgresql_begins_no_transaction(new_database_url):
    db = Database(new_database_url("postgres"))
    with db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Tenant)) == 1
        at = session.connection().connection.dbapi_connection
        assert at.info.transaction_status == at.info.transaction_status.IDLE
    db.dispose()


def test_a_connection_that_was_looked_through_writes_in_transactions_again(database: Database):
    with database.read() as session:
        looked = session.connection().connection.dbapi_connection
        assert session.scalar(STORED) is None
    with pytest.raises(ZeroDivisionError), database.write() as session:
        assert session.connection().connection.dbapi_connection is looked, "from the pool"
        session.execute(sa.update(Tenant).values(stored_bytes=7))
        raise ZeroDivisionError
    with database.read() as session:
        assert session.scalar(STORED) is None, "it was rolled back"
    with database.write() as session:
        session.execute(sa.update(Tenant).values(stored_bytes=8))
    with database.read() as session:
        assert session.scalar(STORED) == 8


@pytest.mark.postgres
def test_a_statement_is_waited_for_no_longer_than_the_limit_and_its_answer_is_not_taken_for_anothers(
    new_database_url: Callable[[str], str],
):
    url = new_database_url("postgres")
    slow = sa.text("SELECT 'slow' FROM pg_sleep(1.5)")
    db = Database(url, answer_s=0.5)
    for transaction in (db.read, db.write):
        with pytest.raises(OperationalError, match="timeout") as caught, transaction() as session:
            session.scalar(slow)
        assert caught.value.connection_invalidated, "and with it all that the pool has: they may hang as well"
        with transaction() as session:
            assert session.scalar(sa.select(sa.literal("quick"))) == "quick"
    db.dispose()
    patient = Database(url)
    with patient.read() as session:
        assert session.scalar(slow) == "slow"
    patient.dispose()


@pytest.mark.postgres
def test_an_error_of_a_statement_leaves_its_connection_alive(new_database_url: Callable[[str], str]):
    db = Database(new_database_url("postgres"), answer_s=30)
    with db.write() as session:
        connection = session.connection().connection.dbapi_connection
        with pytest.raises(sa.exc.DBAPIError), session.begin_nested():
            session.execute(sa.text("SET LOCAL statement_timeout = '50ms'"))
            session.execute(sa.text("SELECT pg_sleep(5)"))
        assert session.scalar(sa.select(sa.literal("quick"))) == "quick"
        assert session.connection().connection.dbapi_connection is connection
    db.dispose()


@pytest.mark.postgres
def test_times_are_utc_wherever_the_database_says_it_is(new_database_url: Callable[[str], str]):
    """What is shown, signed and sent says so: the dashboard writes UTC beside them."""
    url = new_database_url("postgres")
    at_home = Database(url)
    with at_home.engine.begin() as connection:
        name = at_home.engine.dialect.identifier_preparer.quote(at_home.url.database)
        connection.execute(sa.text(f"ALTER DATABASE {name} SET timezone TO 'Asia/Kolkata'"))
    at_home.dispose()
    db = Database(url)
    with db.write() as session:
        assert session.scalar(sa.text("SHOW timezone")) == "Asia/Kolkata"
        now = db.now(session)
        session.execute(sa.update(Tenant).values(stored_counted_at=now))
    with db.read() as session:
        kept = session.scalar(sa.select(Tenant.stored_counted_at))
        counted = session.get_one(Tenant, EMBEDDED_TENANT).stored_counted_at
    db.dispose()
    assert [time.utcoffset() for time in (now, kept, counted)] == [timedelta(0)] * 3
    assert kept == counted == now


@pytest.mark.postgres
def test_a_server_that_is_gone_without_a_word_is_noticed_by_the_system(new_database_url):
    db = Database(new_database_url("postgres"))
    with db.read() as session:
        at = session.connection().connection.dbapi_connection
        with socket.socket(fileno=os.dup(at.fileno())) as connected:
            idle, again, tries = (connected.getsockopt(socket.IPPROTO_TCP, one) for one in KEEPALIVE)
            unheard_ms = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    db.dispose()
    assert 0 < idle + again * tries <= 60
    assert 0 < unheard_ms <= 60_000
