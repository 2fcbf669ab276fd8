"""Conditional requests (RFC 9110, 13)."""

from __future__ import annotations


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header holds the ETag, quotes included: any of its list, weakly compared (13.1.2)."""
    tags = [tag.removeprefix("W/") for tag in _tags(if_none_match or "")]
    return etag in tags or tags == ["*"]


def is_another(if_match: str | None, etag: str) -> bool:
    """Whether an If-Match header asks for something else than the ETag: none of its list is it, strongly compared (13.1.1)."""
    tags = _tags("*" if if_match is None else if_match)
    return etag not in tags and tags != ["*"]


def _tags(header: str) -> list[str]:
    return [tag.strip() for tag in header.split(",")]
