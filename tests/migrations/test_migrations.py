"""The schema is what the tables say, and can be taken back."""

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
