"""Runs migrations over the service's own engine: the caller's, or the one of the settings."""

import sqlalchemy as sa
from alembic import context

from app.artifacts import table as _artifacts  # noqa: F401 - registers its tables
from app.database import Base, Database
from app.datasets import table as _datasets  # noqa: F401
from app.jobs import table as _jobs  # noqa: F401
from app.settings import Settings
from app.source_models import table as _source_models  # noqa: F401

LOCK = 20261124
"""Any number, so long as every migration takes the same."""

given = context.config.attributes.get("database")
db: Database = given or Database(Settings().sqlalchemy_url)
with db.engine.connect().execution_options(sqlite_begin="BEGIN IMMEDIATE") as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=db.is_sqlite,  # SQLite cannot alter a column in place
        compare_type=True,
        user_module_prefix="app.database.",
    )
    with context.begin_transaction():
        if not db.is_sqlite:  # front end and worker may start together: one migrates, the other finds it done
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        context.run_migrations()
if given is None:
    db.dispose()
