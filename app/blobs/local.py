"""Blobs in a local folder: written aside, then renamed into place."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from app.blobs import staging
from app.blobs.staging import CHUNK, Staged, checked, full_disk_told

_READ = 1 << 18
_RACES = 10
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES})


class LocalBlobs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aside = folder / "aside"
        self.kept = folder / "kept"

    def prepare(self) -> None:
        self.aside.mkdir(parents=True, exist_ok=True)
        self.kept.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        return self.kept / checked(key)

    def stage(self) -> Staged:
        return staging.stage(self.aside)

    def keep(self, staged: Staged, key: str) -> None:
        """File and folder are synced."""
        with full_disk_told():
            staged.file.flush()
            os.fsync(staged.file.fileno())
            self._place(key, staged.path.replace)

    def _place(self, key: str, move: Callable[[Path], object]) -> None:
        """Into its folder, which who deletes the last other blob in it may just be removing."""
        target = self.path(key)
        for race in range(_RACES):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                move(target)
                break
            except FileNotFoundError:
                if race == _RACES - 1:
                    raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def put(self, source: Path, key: str) -> tuple[int, str]:
        with self.stage() as staged, source.open("rb") as file:
            while chunk := file.read(CHUNK):
                staged.write(chunk)
            self.keep(staged, key)
            return staged.size, staged.sha256

    def adopt(self, source: Path, key: str) -> None:
        """A hard link; a copy where `source` lies on another file system, or on one that has none."""
        with full_disk_told():
            try:
                self._place(key, lambda target: os.link(source, target, follow_symlinks=False))
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                self.put(source, key)

    def read(self, key: str, start: int, end: int) -> FileReading:
        return FileReading(self.path(key).open("rb"), start, end)

    def local(self, key: str, place: Path) -> Path:
        path = self.path(key)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such blob", key)
        return path

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

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key, _ in self._all(self.path(prefix.rstrip("/"))))

    def keys_older_than(self, seconds: float) -> Iterator[str]:
        before = time.time() - seconds
        yield from (key for key, written_at in self._all(self.kept) if written_at < before)

    def _all(self, folder: Path) -> Iterator[tuple[str, float]]:
        for path in folder.rglob("*"):
            try:
                if path.is_file():
                    yield path.relative_to(self.kept).as_posix(), path.stat().st_mtime
            except FileNotFoundError:
                continue  # deleted while we looked

    def clear_aside(self, older_than_s: float) -> int:
        return staging.clear(self.aside, older_than_s)


class FileReading:
    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._left = file, end - start
        file.seek(start)

    def __iter__(self) -> Iterator[bytes]:
        while self._left and (piece := self._file.read(min(_READ, self._left))):
            self._left -= len(piece)
            yield piece

    def close(self) -> None:
        self._file.close()
