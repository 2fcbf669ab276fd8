"""References to data that do not lie on this machine's disk: their grammar.

dataset://<id>[/folder or file inside]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BaseModel

from app.errors import Problem
from app.references import is_plain

Scheme = Literal["dataset"]
SCHEMES: tuple[Scheme, ...] = ("dataset",)
_DATASET = re.compile(r"dataset_[0-9a-z]{26}")


class Pin(BaseModel):
    """What a reference led to when its job was accepted. uri: of what is fetched as a whole. size: of that, in bytes."""

    uri: str
    version: str
    size: int


@dataclass(frozen=True)
class Remote:
    """base: what is fetched as a whole, the same for two references into one. inner: the path inside of it, with slashes;
    empty: all of it. place: the dataset's id."""

    scheme: Scheme
    base: str
    inner: str
    place: str


def is_remote(uri: str) -> bool:
    return uri.partition("://")[0].lower() in SCHEMES


def parse(uri: str, pointer: str) -> Remote:
    """Raises Problem reference_scheme."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise _wrong(uri, f"it is not a URI: {error}", pointer) from error
    return _dataset(uri, parts, pointer)


def _dataset(uri: str, parts: SplitResult, pointer: str) -> Remote:
    if parts.query or parts.fragment:
        raise _wrong(uri, "write ? and # of a name as %3F and %23", pointer)
    if not _DATASET.fullmatch(parts.netloc):
        raise _wrong(uri, f"{parts.netloc[:100]!r} is not the id of a dataset", pointer)
    return Remote("dataset", f"dataset://{parts.netloc}", _inner(uri, parts.path, pointer), parts.netloc)


def _inner(uri: str, quoted: str, pointer: str) -> str:
    path = unquote(quoted).strip("/")
    if not is_plain(path) or "\0" in path:
        raise _wrong(uri, "the path inside must be without '..'", pointer)
    return path


def _wrong(uri: str, why: str, pointer: str) -> Problem:
    return Problem("reference_scheme", f"{uri[:500]!r}: {why}", pointer=pointer)
