"""Files on their way into a store: written aside on this machine's disk, counted and hashed as they stream."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import Problem

ABANDONED_S = 24 * 3600.0
"""An upload that has not moved for a day is gone."""
CHUNK = 1 << 20
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class BlobsAwayError(Exception):
    """The blob store does not answer, or refuses: for the operator, with its address. Worth another try."""


def checked(key: str) -> str:
    """Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a blob key: {key!r}")
    return key


@dataclass
class Staged:
    """A blob that is still aside. Gone unless kept: `with blobs.stage() as staged`."""

    path: Path
    file: Any
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Raises Problem storage_full."""
        with full_disk_told():
            self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.file.close()
        except OSError:
            # Closing flushes; on a full disk that fails again, and the descriptor is closed all the same.
            if not self.file.closed:
                raise
        finally:
            self.path.unlink(missing_ok=True)


class full_disk_told:  # noqa: N801 - reads as a statement
    """Turns ENOSPC and EDQUOT into Problem storage_full."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Problem("storage_full", "no space is left for blobs") from error


def stage(aside: Path) -> Staged:
    """Raises Problem storage_full."""
    with full_disk_told():
        aside.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=aside)
    return Staged(Path(name), os.fdopen(descriptor, "wb"))


def clear(aside: Path, older_than_s: float, names: str = "*") -> int:
    """Removes files that have not been written to for so long; how many."""
    before, cleared = time.time() - older_than_s, 0
    for path in aside.glob(names):
        try:
            if path.stat().st_mtime < before:
                path.unlink()
                cleared += 1
        except FileNotFoundError:
            continue  # another pass was faster
    return cleared


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
