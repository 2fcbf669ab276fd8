"""Runs migrations over the service's own engine: the caller's, or the one of the settings."""

from alembic import context

from app.artifacts import table as _artifacts  # noqa: F401 - registers its tables
from app.database import Base, Database
from app.jobs import table as _jobs  # noqa: F401
from app.settings import Settings
from app.source_models import table as _source_models  # noqa: F401

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
        context.run_migrations()
if given is None:
    db.dispose()
