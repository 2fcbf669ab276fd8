"""Rows that name blobs. These are kept before their row is committed, and deleted after it is: a crash in between leaves blobs that
housekeeping finds, never a row without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from app import storage
from app.blobs import Blobs, discard
from app.database import Database
from app.datasets.table import Dataset
from app.errors import Problem
from app.settings import Settings
from app.source_models.table import SourceModel

Row = TypeVar("Row", SourceModel, Dataset)


def commit(db: Database, blobs: Blobs, settings: Settings, row: Row) -> None:
    """The row, dated and committed; its blobs are kept already. Raises what the database raises, Problem quota_exceeded."""
    try:
        with db.write() as session:
            row.created_at = db.now(session)
            session.add(row)
            session.flush()
            storage.take(session, row.tenant_id, row.stored_bytes, settings.storage_bytes)
    except Exception as error:
        # Of a commit whose connection was lost nobody knows what came, or will come: the database may still be at it. If it comes
        # to nothing, or the database does not answer, the blobs stay until housekeeping finds that no row names them.
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        with suppress(SQLAlchemyError), db.read() as session:
            if session.get(type(row), row.id) is None:
                discard(blobs, row.blob_keys)
        raise


def delete(
    db: Database, blobs: Blobs, find: Callable[[Session], Row | None], unknown: Problem, in_use: Callable[[], Problem]
) -> None:
    """The row that is found, and its blobs. Raises `unknown` where there is none; `in_use` where the foreign key of a job says so."""
    try:
        with db.write() as session:
            if (row := find(session)) is None:
                raise unknown
            table = type(row)
            if session.scalar(sa.delete(table).where(table.id == row.id).returning(table.id)) is None:
                raise unknown  # another has deleted it meanwhile, and given back what it held
            storage.give_back(session, row.tenant_id, row.stored_bytes)
    except IntegrityError as error:
        raise in_use() from error
    discard(blobs, row.blob_keys)
