"""The schema is what the tables say, and can be taken back."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from app import schema
from app.database import EMBEDDED_TENANT, Database


def _add_job(connection: sa.Connection) -> None:
    """As every revision knows it."""
    for statement in (
        "insert into source_models (id, tenant_id, sha256, fingerprint, size, format, description, blob_key, created_at)"
        " values ('model_1', :tenant, '', '', 1, 'torch', '{}', 'key', CURRENT_TIMESTAMP)",
        "insert into jobs (id, tenant_id, source_model_id, method, request, request_digest, status, attempt, lost_attempts,"
        " version, last_event, created_at, queued_at, updated_at) values ('job_1', :tenant, 'model_1', 'shot', '{}', '',"
        " 'queued', 0, 0, 1, 0, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)",
    ):
        connection.execute(sa.text(statement), {"tenant": EMBEDDED_TENANT})


def test_the_migrated_schema_is_the_tables_own(database: Database) -> None:
    command.check(schema.config(database))


def test_downgrade_leaves_nothing_and_upgrade_builds_it_again(database: Database) -> None:
    command.downgrade(schema.config(database), "base")
    assert set(sa.inspect(database.engine).get_table_names()) <= {"alembic_version"}
    schema.upgrade(database)
    schema.require_current(database)


def test_a_database_of_another_release_is_refused_with_what_helps(database: Database) -> None:
    command.downgrade(schema.config(database), "0011")
    with pytest.raises(RuntimeError, match=r"is at revision 0011, this code needs \d+: run `make migrate`"):
        schema.require_current(database)
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'of-tomorrow'"))
    with pytest.raises(RuntimeError, match="it is newer than this code"):
        schema.require_current(database)


def test_two_processes_that_start_together_migrate_once(database: Database) -> None:
    command.downgrade(schema.config(database), "base")
    env = os.environ | {"MODALBRIDGE_DATABASE_URL": database.url.render_as_string(hide_password=False)}
    upgrade = [sys.executable, "-m", "alembic", "upgrade", "head"]
    both = [subprocess.Popen(upgrade, env=env, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE) for _ in range(2)]
    for one in both:
        errors = one.communicate(timeout=60)[1]
        assert one.returncode == 0, errors.decode()
    schema.require_current(database)


def test_no_other_process_can_come_between_two_migrations(database: Database) -> None:
    """On a busy machine one did, and each found half of the work done."""
    command.downgrade(schema.config(database), "base")
    begun: list[sa.Connection] = []
    sa.event.listen(database.engine, "begin", begun.append)
    schema.upgrade(database)
    assert len(begun) == 1


@pytest.mark.postgres
def test_a_table_in_use_stops_a_migration_soon_and_whole(new_database_url: Callable[[str], str]) -> None:
    """A change that waits for a table makes every query behind it wait as well."""
    database = Database(new_database_url("postgres"))
    try:
        command.downgrade(schema.config(database), "0003")
        config = schema.config(database)
        config.attributes["lock_timeout_s"] = 0.2
        with database.engine.begin() as reader:
            reader.execute(sa.text("LOCK TABLE jobs IN ACCESS SHARE MODE"))
            with pytest.raises(RuntimeError, match=r"in use for 0\.2 s: nothing is changed"):
                command.upgrade(config, "head")
        command.upgrade(config, "head")
        schema.require_current(database)
    finally:
        database.dispose()


def test_jobs_that_are_queued_keep_their_place_when_shares_come(database: Database) -> None:
    command.downgrade(schema.config(database), "0003")
    with database.engine.begin() as connection:
        _add_job(connection)
    schema.upgrade(database)
    with database.engine.begin() as connection:
        assert connection.execute(sa.text("select share, rank from jobs")).one() == (EMBEDDED_TENANT, 0)


def test_jobs_that_wait_for_cuda_are_known_when_workers_differ(database: Database) -> None:
    command.downgrade(schema.config(database), "0006")
    with database.engine.begin() as connection:
        _add_job(connection)
        connection.execute(sa.text("""update jobs set request = '{"device": "cuda"}'"""))
    schema.upgrade(database)
    with database.engine.begin() as connection:
        assert connection.execute(sa.text("select needs_cuda from jobs")).scalar()


def test_what_belongs_to_a_job_outlives_each_downgrade(database: Database) -> None:
    """SQLite: a table that is made anew takes with it what points to the old one."""
    with database.engine.begin() as connection:
        _add_job(connection)
        event = "insert into job_events (job_id, seq, tenant_id, attempt, at, kind, message) values ('job_1', 1, :tenant, 0, CURRENT_TIMESTAMP, 'log', '')"
        connection.execute(sa.text(event), {"tenant": EMBEDDED_TENANT})
    for revision in ("0011", "0010", "0009", "0008", "0007", "0006", "0005", "0004", "0003", "0002", "0001"):
        command.downgrade(schema.config(database), revision)
        with database.engine.begin() as connection:
            assert connection.execute(sa.text("select count(*) from job_events")).scalar() == 1, revision


def test_further_source_models_come_and_go_with_jobs_in_place(database: Database) -> None:
    """The revision before knows of no such table; the jobs of both are the same."""
    command.downgrade(schema.config(database), "0001")
    with database.engine.begin() as connection:
        _add_job(connection)
    schema.upgrade(database)
    with database.engine.begin() as connection:
        connection.execute(sa.text("insert into job_further_source_models values ('job_1', 0, 'model_1')"))
    command.downgrade(schema.config(database), "0001")
    schema.upgrade(database)
    with database.engine.begin() as connection:
        assert connection.scalar(sa.text("select id from jobs")) == "job_1"
        assert connection.scalar(sa.text("select count(*) from job_further_source_models")) == 0
