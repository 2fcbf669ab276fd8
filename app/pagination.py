"""One envelope for every list: `{"data": [...], "next": cursor or null}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from app.errors import Problem

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    data: list[T]
    next: str | None = Field(None, description="Pass it as `after` for the next page; null: this was the last one.")


def page_by_id(rows: Sequence[Any], limit: int, view: Callable[[Any], T]) -> Page[T]:
    """The first `limit` rows, of a query that asked for one more: whether it came says if there is a next page. The cursor is the id
    of the last row shown."""
    return Page(data=[view(row) for row in rows[:limit]], next=rows[limit - 1].id if len(rows) > limit else None)


Limit = Annotated[int, Query(ge=1, le=200, description="At most this many a page.")]


def id_cursor(after: str | None, prefix: str) -> str | None:
    """A cursor that is an id, checked."""
    if after is not None and not re.fullmatch(rf"{prefix}_[0-9a-z]{{26}}", after):
        raise Problem("invalid_cursor", f"{after[:100]!r} was never a `next` of this list")
    return after


def number_cursor(after: str | None) -> int:
    """A cursor that counts from 0, checked."""
    if after is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,9}", after):
        raise Problem("invalid_cursor", f"{after[:100]!r} was never a `next` of this list")
    return int(after)
