"""Runs migrations over the service's own engine: the caller's, or the one of the settings."""

import sqlalchemy as sa
from alembic import context
from sqlalchemy.exc import OperationalError

from app.artifacts import table as _artifacts  # noqa: F401 - registers its tables
from app.database import Base, Database
from app.datasets import table as _datasets  # noqa: F401
from app.jobs import table as _jobs  # noqa: F401
from app.settings import read
from app.source_models import table as _source_models  # noqa: F401
from app.webhooks import table as _webhooks  # noqa: F401

LOCK = 20261124
"""Any number, so long as every migration takes the same."""

LOCK_TIMEOUT_S = 5
LOCK_NOT_AVAILABLE = "55P03"

given = context.config.attributes.get("database")
db: Database = given or Database(read().sqlalchemy_url)
# One transaction for all, begun before Alembic looks: left to itself it has one for each with SQLite, and another process between them.
with db.engine.connect().execution_options(sqlite_begin="BEGIN IMMEDIATE") as connection, connection.begin():
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
            # A change that waits for a table makes everyone behind it wait as well.
            seconds = context.config.attributes.get("lock_timeout_s", LOCK_TIMEOUT_S)
            connection.execute(sa.text(f"SET LOCAL lock_timeout = {int(1000 * seconds)}"))
        try:
            context.run_migrations()
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise RuntimeError(
                f"a table was in use for {seconds:g} s: nothing is changed; end the transaction that holds it, or run this again"
            ) from error
if given is None:
    db.dispose()
