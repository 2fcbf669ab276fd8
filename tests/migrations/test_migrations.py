"""The schema is what the tables say, and can be taken back."""

import os
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa
from alembic import command

from app import schema
from app.database import Database


def test_the_migrated_schema_is_the_tables_own(database: Database) -> None:
    command.check(schema.config(database))


def test_downgrade_leaves_nothing_and_upgrade_builds_it_again(database: Database) -> None:
    command.downgrade(schema.config(database), "base")
    assert set(sa.inspect(database.engine).get_table_names()) <= {"alembic_version"}
    schema.upgrade(database)
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
