"""A row that names blobs: they are kept before it is committed, and a row that is not there leaves none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.blobs import Blobs, discard
from app.database import Database


def commit(db: Database, blobs: Blobs, row: Any, keys: Sequence[str], find: Callable[[Session], object | None]) -> None:
    """The row, dated and committed. keys: of its blobs, which are kept already. find: the row, if it is there. Raises what the
    database raises."""
    try:
        with db.write() as session:
            row.created_at = db.now(session)
            session.add(row)
    except Exception:
        # A commit may have happened though its answer was lost: the database alone knows whether the blobs are needed.
        # If it does not answer, they stay until housekeeping finds that no row names them.
        with suppress(SQLAlchemyError), db.read() as session:
            if find(session) is None:
                discard(blobs, keys)
        raise
