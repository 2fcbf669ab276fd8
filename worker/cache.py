"""What workers of one machine have fetched: unpacked once, for any job that names it, within a number of bytes.

entries/<key>/     files/ and meta.json; comes by a rename, so it is whole or not there
locks/<key>        held shared while a job uses the entry, alone while it is filled or deleted; its time is that of the last use
aside/<name>/      what is being filled, its lock held; what is being deleted
lock               held for as long as it takes to count

Locks are the kernel's (flock), so those of a process that is killed are gone with it, and nothing else need remember them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import structlog

from app.errors import Problem
from worker.beside import NotYetError

POLL_S = 0.2
"""While another worker fetches the same."""
STEP = 64 * 2**20
log = structlog.get_logger()


class Held:
    """An entry that stays until close(). version: what was read, by its content."""

    def __init__(self, folder: Path, size: int, version: str, lock: IO[str]) -> None:
        self.folder, self.size, self.version, self._lock = folder, size, version, lock

    def close(self) -> None:
        if not self._lock.closed:
            os.utime(self._lock.fileno())
            self._lock.close()


class Room:
    """Where an entry is filled. files: what becomes of it; scratch: a file for what is deleted when it is full."""

    def __init__(self, cache: Cache, place: Path, beside: int) -> None:
        self._cache, self.place, self._beside, self._noted = cache, place, beside, 0
        self.lacked = 0
        """What there was no room for, the last time."""
        self.files, self.scratch = place / "files", place / "scratch"
        self.files.mkdir(mode=0o700, parents=True)
        self.reserved = (place / "reserved").open("w+")
        fcntl.flock(self.reserved, fcntl.LOCK_EX)

    def need(self, size: int) -> None:
        """So many bytes in all, before they are written. Raises Problem cache_full; NotYetError where other jobs use what would
        have to go."""
        try:
            self._cache.make_room(self, size, self._beside)
        except NotYetError:
            self.lacked = size
            raise

    def grow(self, size: int) -> None:
        """need(), for what becomes more by and by: some more is taken, so that not every piece asks."""
        if size > self._noted:
            try:
                self.need(min(size + STEP, max(size, self._cache.most - self._beside)))
            except NotYetError:
                self.need(size)

    def note(self, size: int) -> None:
        self.reserved.seek(0)
        self.reserved.write(f"{size:020}")
        self.reserved.flush()
        self._noted = size


def on_disk(path: Path) -> int:
    """The bytes that a file or folder takes there: whole blocks, or, where a disk packs it, what is in it."""
    status = path.stat()
    return max(status.st_size, status.st_blocks * 512)


class Cache:
    """What it found no room for while it filled an entry, it makes room for first when it is asked again: so a job that waits
    does not fetch again what would be thrown away again."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._lacked: dict[str, int] = {}
        self.entries, self.locks, self.aside = folder / "entries", folder / "locks", folder / "aside"

    def hold(self, key: str, fill: Callable[[Room], str], going_on: Callable[[], None], beside: int = 0) -> Held:
        """The entry, filled if it is not there: fill() writes into a room, and returns the version. beside: bytes that the same
        job holds already. going_on: is asked again and again while another worker fills it, and raises to end that. Raises
        what these raise; Problem cache_full; NotYetError; OSError."""
        for folder in (self.entries, self.locks, self.aside):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            going_on()
            if (lock := self._lock(key, fcntl.LOCK_SH)) is not None:
                if (meta := self._meta(key)) is not None:
                    os.utime(lock.fileno())
                    return Held(self.entries / key / "files", meta["size"], meta["version"], lock)
                lock.close()
            if (lock := self._lock(key, fcntl.LOCK_EX)) is None:
                time.sleep(POLL_S)
                continue
            with lock:
                if self._meta(key) is None:
                    self._fill(key, fill, beside)

    def _lock(self, key: str, kind: int) -> IO[str] | None:
        """None: others hold it in a way that forbids it."""
        path = self.locks / key
        while True:
            file = path.open("a+")
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            except BlockingIOError:
                file.close()
                return None
            except FileNotFoundError:
                pass  # deleted with its entry, a moment ago: the next one is made anew
            file.close()

    def _meta(self, key: str) -> dict[str, object] | None:
        try:
            return json.loads((self.entries / key / "meta.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None  # or damaged by a hand or a disk: it is filled anew

    def _fill(self, key: str, fill: Callable[[Room], str], beside: int) -> None:
        with self._counting():
            room = Room(self, self.aside / uuid.uuid4().hex, beside)
        try:
            if key in self._lacked:
                room.need(self._lacked[key])
            version = fill(room)
            room.scratch.unlink(missing_ok=True)
            size = sum(on_disk(path) for path in room.files.rglob("*"))
            room.need(size)
            (room.place / "meta.json").write_text(json.dumps({"size": size, "version": version}))
            os.sync()  # a rename that outlives its content would be an entry with holes
            with self._counting():
                (room.place / "reserved").unlink()
                shutil.rmtree(self.entries / key, ignore_errors=True)  # of a damaged one
                room.place.rename(self.entries / key)
        except NotYetError:
            self._lacked[key] = room.lacked
            raise
        finally:
            shutil.rmtree(room.place, ignore_errors=True)
            room.reserved.close()

    def make_room(self, room: Room, size: int, beside: int) -> None:
        """See Room.need."""
        if size + beside > self.most:
            detail = f"the job's data need {size + beside} bytes, and the cache has {self.most}"
            raise Problem("cache_full", detail, needed=size + beside, limit=self.most)
        gone: list[Path] = []
        try:
            with self._counting():
                entries = self._entries()
                excess = sum(entries.values()) + self._reserved(room, gone) + size - self.most
                lacking = excess - sum(entries[key] for key in self._idle(entries, excess))
                if lacking <= 0:
                    lacking = excess - self._evict(entries, excess, gone)
                if lacking > 0:
                    raise NotYetError(f"{lacking} bytes of the cache are in use by other jobs")
                room.note(size)
        finally:
            for place in gone:  # beside the lock: it may be many files
                shutil.rmtree(place, ignore_errors=True)

    def tidy(self) -> None:
        """Removes what killed workers left half done, and what is more than the cache may have."""
        if not self.aside.is_dir():
            return
        gone: list[Path] = []
        with self._counting():
            entries = self._entries()
            self._evict(entries, sum(entries.values()) + self._reserved(None, gone) - self.most, gone)
        for place in gone:
            shutil.rmtree(place, ignore_errors=True)
        for path in self.locks.iterdir():  # of what could not be fetched
            if not (self.entries / path.name).exists() and (lock := self._lock(path.name, fcntl.LOCK_EX)) is not None:
                with lock:
                    path.unlink()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _entries(self) -> dict[str, int]:
        """Bytes by key."""
        return {one.name: int(meta["size"]) if (meta := self._meta(one.name)) else 0 for one in self.entries.iterdir()}  # type: ignore[call-overload]

    def _used_at(self, key: str) -> float:
        try:
            return (self.locks / key).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _reserved(self, mine: Room | None, gone: list[Path]) -> int:
        """By the other rooms; those whose maker is dead, and what is half deleted, are added to `gone`."""
        total = 0
        for place in self.aside.iterdir():
            if mine is not None and place == mine.place:
                continue
            with suppress(FileNotFoundError, NotADirectoryError), (place / "reserved").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += int(file.read() or 0)  # by the handle: its room may be removed meanwhile
                    continue
            gone.append(place)
        return total

    def _idle(self, entries: dict[str, int], excess: int) -> Iterator[str]:
        """Those that nobody uses, the least recently used first, until they make up for the excess. The lock of each is held until
        the next is asked for: those of all may be more files than a process may open."""
        for key in sorted(entries, key=self._used_at):
            if excess <= 0:
                return
            if (lock := self._lock(key, fcntl.LOCK_EX)) is not None:
                with lock:
                    yield key
                excess -= entries[key]

    def _evict(self, entries: dict[str, int], excess: int, gone: list[Path]) -> int:
        """How many bytes it let go of: less than the excess, if others use what is left."""
        freed = 0
        for key in self._idle(entries, excess):
            place = self.aside / uuid.uuid4().hex
            (self.entries / key).rename(place)
            (self.locks / key).unlink()
            gone.append(place)
            freed += entries[key]
            log.info("the cache lets go of an entry", key=key)
        return freed
