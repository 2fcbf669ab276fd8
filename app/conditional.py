"""Conditional requests (RFC 9110, 13)."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from pydantic import BaseModel

_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


class Conditions(BaseModel):
    """The headers of a request that wants a file only if it is as the client knows it (13.2.2). A date counts only where no ETag is
    given, and where it is one. etag: the file's, quotes included; written_at: in whole seconds."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    if_unmodified_since: str | None = None

    def refuse(self, etag: str, written_at: datetime) -> bool:
        """Whether it is another file than the client asks for."""
        if self.if_match is not None:
            tags = _tags(self.if_match)  # strongly compared (13.1.1)
            return etag not in tags and tags != ["*"]
        since = date_of(self.if_unmodified_since)
        return since is not None and written_at > since

    def know(self, etag: str, written_at: datetime) -> bool:
        """Whether the client has it already."""
        if self.if_none_match is not None:
            return matches(self.if_none_match, etag)
        since = date_of(self.if_modified_since)
        return since is not None and written_at <= since


def date_of(header: str | None) -> datetime | None:
    """An HTTP-date in any of its three forms (5.6.7); None for what is none."""
    for form in _DATES:
        with suppress(ValueError):
            return datetime.strptime(header or "", form).replace(tzinfo=UTC)
    return None


def http_date(moment: datetime) -> str:
    """moment: of UTC."""
    return moment.strftime(_DATES[0])


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header holds the ETag, quotes included: any of its list, weakly compared (13.1.2)."""
    tags = [tag.removeprefix("W/") for tag in _tags(if_none_match or "")]
    return etag in tags or tags == ["*"]


def _tags(header: str) -> list[str]:
    return [tag.strip() for tag in header.split(",")]
