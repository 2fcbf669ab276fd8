"""References to data that do not lie on this machine's disk: their grammar.

dataset://<id>[/folder or file inside]
    s3://bucket/prefix               a folder of objects; if it ends in .txt or .csv, that file and what lies beside it
    s3://bucket/key.zip[#inside]     one archive: .zip, .tar, .tar.gz, .tgz
https://host[:port]/path.zip[?query][#inside]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pydantic import BaseModel

from app import archives
from app.errors import Problem
from app.references import is_plain, shown

Scheme = Literal["dataset", "s3", "https"]
SCHEMES: tuple[Scheme, ...] = ("dataset", "s3", "https")
_ARCHIVE = (".zip", ".tar", ".tar.gz", ".tgz")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_ASCII = re.compile(r"[!-~]*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_DATASET = re.compile(r"dataset_[0-9a-z]{26}")


class Pin(BaseModel):
    """What a reference led to when its job was accepted. uri: of what is fetched as a whole. size: of that, in bytes; None: nobody says. version: empty where nobody says either."""

    uri: str
    version: str
    size: int | None


@dataclass(frozen=True)
class Remote:
    """base: what is fetched as a whole, the same for two references into one. inner: the path inside of it, with slashes;
    empty: all of it. place: the dataset's id, the bucket, the host with its port unless that is 443. path: in it, of an object or, where it is no archive, of a folder."""

    scheme: Scheme
    base: str
    inner: str
    place: str
    path: str = ""

    @property
    def shown(self) -> str:
        """The base as a problem may have it, which logs, webhooks and MLflow are told: without the query."""
        return shown(self.base)

    @property
    def is_archive(self) -> bool:
        return self.scheme in ("dataset", "https") or is_archive(self.path)


def is_remote(uri: str) -> bool:
    return uri.partition("://")[0].lower() in SCHEMES


def parse(uri: str, pointer: str, *, hop: bool = False) -> Remote:
    """hop: of a redirect, whose path may end in anything. Raises Problem reference_scheme."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise _wrong(uri, f"it is not a URI: {error}", pointer) from error
    if parts.scheme.lower() == "s3":
        return _s3(uri, parts, pointer)
    if parts.scheme.lower() == "https":
        return _https(uri, parts, pointer, hop)
    return _dataset(uri, parts, pointer)


def is_archive(path: str) -> bool:
    return path.lower().endswith(_ARCHIVE)


def _dataset(uri: str, parts: SplitResult, pointer: str) -> Remote:
    if parts.query or parts.fragment:
        raise _wrong(uri, "write ? and # of a name as %3F and %23", pointer)
    if not _DATASET.fullmatch(parts.netloc):
        raise _wrong(uri, f"{parts.netloc[:100]!r} is not the id of a dataset", pointer)
    return Remote("dataset", f"dataset://{parts.netloc}", _inner(uri, parts.path, pointer), parts.netloc)


def _s3(uri: str, parts: SplitResult, pointer: str) -> Remote:
    if parts.query:
        raise _wrong(uri, "write ? of a name as %3F", pointer)
    if not _BUCKET.fullmatch(parts.netloc):
        raise _wrong(uri, f"{parts.netloc[:100]!r} is not the name of a bucket", pointer)
    path = _inner(uri, parts.path, pointer)
    if is_archive(path):
        return Remote("s3", f"s3://{parts.netloc}/{quote(path)}", _inner(uri, parts.fragment, pointer), parts.netloc, path)
    if parts.fragment:
        raise _wrong(uri, "only an archive has something inside; write # of a name as %23", pointer)
    folder, inner = path, ""
    if archives.is_text(path):
        folder, _, inner = path.rpartition("/")
    return Remote("s3", f"s3://{parts.netloc}/{quote(folder)}", inner, parts.netloc, folder)


def _https(uri: str, parts: SplitResult, pointer: str, hop: bool) -> Remote:
    try:
        host, port = (parts.hostname or "").lower(), parts.port or 443
    except ValueError as error:
        raise _wrong(uri, f"its port is none: {error}", pointer) from error
    if not _HOST.fullmatch(host) or parts.username is not None or parts.password is not None:
        raise _wrong(uri, "it needs the name of a host, and nothing before it", pointer)
    if not hop and not is_archive(unquote(parts.path)):
        raise _wrong(uri, f"its path must end in {', '.join(_ARCHIVE)}", pointer)
    if not _ASCII.fullmatch(parts.path + parts.query):
        raise _wrong(uri, "write what is not ASCII, and spaces, by %", pointer)
    place = host if port == 443 else f"{host}:{port}"
    query = f"?{parts.query}" if parts.query else ""
    inner = _inner(uri, parts.fragment, pointer)
    return Remote("https", f"https://{place}{parts.path or '/'}{query}", inner, place, unquote(parts.path))


def _inner(uri: str, quoted: str, pointer: str) -> str:
    path = unquote(quoted).strip("/")
    if not is_plain(path) or "\0" in path:
        raise _wrong(uri, "the path inside must be without '..'", pointer)
    return path


def _wrong(uri: str, why: str, pointer: str) -> Problem:
    return Problem("reference_scheme", f"{shown(uri)[:500]!r}: {why}", pointer=pointer)
