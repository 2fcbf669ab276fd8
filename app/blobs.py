"""Blobs in a local folder: written aside, counted and hashed as they stream, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import Problem

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_CHUNK = 1 << 20


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


class LocalBlobs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aside = folder / "aside"
        self.kept = folder / "kept"

    def prepare(self) -> None:
        self.aside.mkdir(parents=True, exist_ok=True)
        self.kept.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a blob key: {key!r}")
        return self.kept / key

    def stage(self) -> Staged:
        with full_disk_told():
            self.prepare()
            descriptor, name = tempfile.mkstemp(dir=self.aside)
        return Staged(Path(name), os.fdopen(descriptor, "wb"))

    def keep(self, staged: Staged, key: str) -> None:
        """Durable under `key` when it returns: file and folder are synced, so a committed row never names a lost blob."""
        target = self.path(key)
        with full_disk_told():
            staged.file.flush()
            os.fsync(staged.file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.path.replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def put(self, source: Path, key: str) -> tuple[int, str]:
        """Copies a file in; (size, sha256)."""
        with self.stage() as staged, source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                staged.write(chunk)
            self.keep(staged, key)
            return staged.size, staged.sha256

    def delete(self, key: str) -> None:
        path = self.path(key)
        path.unlink(missing_ok=True)
        self._drop_empty(path.parent)

    def _drop_empty(self, folder: Path) -> None:
        while folder != self.kept and folder.is_dir():
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    return
                raise
            folder = folder.parent

    def check(self) -> None:
        """Raises OSError if nothing can be written."""
        self.prepare()
        with tempfile.TemporaryFile(dir=self.aside) as file:
            file.write(b"1")

    def keys_older_than(self, seconds: float) -> Iterator[str]:
        before = time.time() - seconds
        for path in self.kept.rglob("*"):
            try:
                if path.is_file() and path.stat().st_mtime < before:
                    yield path.relative_to(self.kept).as_posix()
            except FileNotFoundError:
                continue  # deleted while we looked

    def clear_aside(self, older_than_s: float) -> int:
        """Uploads that a killed process left half written."""
        before, cleared = time.time() - older_than_s, 0
        for path in self.aside.glob("*"):
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
                    cleared += 1
            except FileNotFoundError:
                continue  # another pass was faster
        return cleared
