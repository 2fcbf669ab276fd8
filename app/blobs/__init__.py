"""Where blobs lie: a folder, or a bucket of an S3-compatible store. Which one, the settings alone say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import structlog

from app.blobs.local import LocalBlobs
from app.blobs.staging import ABANDONED_S, BlobsAwayError, Staged, full_disk_told
from app.settings import Settings

__all__ = ["ABANDONED_S", "Blobs", "BlobsAwayError", "LocalBlobs", "Reading", "Staged", "discard", "full_disk_told", "open_blobs"]
log = structlog.get_logger()


class Reading(Protocol):
    """Bytes of a blob, a piece at a time. close() may be called at any time, and must be."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Blobs(Protocol):
    """What both stores can do. Every function may raise BlobsAwayError: the store does not answer, or refuses. One that
    takes a key raises ValueError on what is none."""

    def prepare(self) -> None:
        """Makes the folders of this machine, and clears them of what a process that was killed left there long ago."""

    def check(self) -> None:
        """Raises OSError or BlobsAwayError, soon, if nothing can be read or written."""

    def stage(self) -> Staged:
        """A new file on this machine's disk, to be written and then kept. Raises Problem storage_full."""

    def keep(self, staged: Staged, key: str) -> None:
        """Durable under `key` when it returns, so that a committed row never names a lost blob; or not there at all.
        Raises Problem storage_full."""

    def put(self, source: Path, key: str) -> tuple[int, str]:
        """Copies a file in, as keep() does; (size, sha256). Raises Problem storage_full."""

    def adopt(self, source: Path, key: str) -> None:
        """As put(), but without a copy where the store can do so: the file may not be written into any more."""

    def read(self, key: str, start: int, end: int) -> Reading:
        """The bytes from start to before end. Raises FileNotFoundError before the first byte."""

    def local(self, key: str, place: Path) -> Path:
        """A path to read the blob at: its own, or `place`, to which it is copied then. Not to be written into. Raises
        FileNotFoundError."""

    def delete(self, key: str) -> None:
        """Nothing happens where nothing is."""

    def keys(self, prefix: str) -> list[str]:
        """Those that begin with `prefix`, which ends with a slash, in order."""

    def keys_older_than(self, seconds: float) -> Iterator[str]:
        """By the store's clock."""

    def clear_aside(self, older_than_s: float) -> int:
        """Removes what killed processes left half written; how much of it there was."""


def open_blobs(settings: Settings) -> Blobs:
    """The store that the settings name. Connects to nothing yet."""
    if not settings.blobs_url:
        return LocalBlobs(settings.blob_dir)
    from app.blobs.s3 import S3Blobs  # boto3 takes a while to import, and many set-ups need none of it

    bucket, _, prefix = settings.blobs_url.removeprefix("s3://").partition("/")
    return S3Blobs(bucket, prefix.strip("/"), settings.s3_endpoint_url or None, settings.blob_dir / "aside")


def lost(blobs: Blobs, *keys: str) -> bool:
    """Whether one of them is not there, though a row names it: as where a database was restored without its blobs."""
    try:
        for key in keys:
            blobs.read(key, 0, 1).close()
    except FileNotFoundError:
        return True
    return False


def discard(blobs: Blobs, keys: Iterable[str]) -> None:
    """Deletes blobs that no row names any more, or yet. What a store that is away keeps, housekeeping finds."""
    try:
        for key in keys:
            blobs.delete(key)
    except BlobsAwayError as error:
        log.warning("the blob store is away: housekeeping deletes what is left", error=str(error)[:300])
