"""The schema is Alembic's alone: what runs here only checks that it is the one it was written for."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.database import Database

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def config(db: Database) -> Config:
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    made.attributes["database"] = db
    return made


def upgrade(db: Database) -> None:
    """To the newest revision."""
    command.upgrade(config(db), "head")


def require_current(db: Database) -> None:
    """Raises RuntimeError, with what to do, unless the database is at the revision of this code."""
    script = ScriptDirectory.from_config(config(db))
    head = script.get_current_head()
    with db.engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != head:
        older = found is None or found in {revision.revision for revision in script.walk_revisions()}
        remedy = (
            "run `make migrate`"
            if older
            else "it is newer than this code, so start the newer code, or restore the backup from before"
        )
        raise RuntimeError(f"the database is at revision {found}, this code needs {head}: {remedy}")
