"""What can be fetched as a whole into an entry of the cache: an uploaded dataset; a folder or an archive in a bucket; an
archive on a host."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from app import archives
from app.blobs import Blobs
from app.blobs.staging import sha256_of
from app.buckets import Buckets, Object, changed
from app.datasets.table import Dataset
from app.downloads import Downloads
from app.errors import Problem
from app.remote import Pin, Remote
from app.settings import Settings
from worker.cache import Room

GoingOn = Callable[[], None]
"""Asked again and again; raises to end a fetch."""
AGAIN_S = (1.0, 3.0, 10.0, 30.0)
"""Between the tries at a place that does not answer; each try has tries of its own."""
AT_ONCE = 8
"""Objects of a bucket: most images are small, and to ask takes longer than to read."""
T = TypeVar("T")


class Source(Protocol):
    """key: of its entry in the cache, the same for the same content."""

    @property
    def key(self) -> str: ...

    def fill(self, room: Room, going_on: GoingOn) -> str:
        """Writes it into the room; its version. Raises Problem, BlobsAwayError, NotYetError, OSError."""


@dataclass(frozen=True)
class Uploaded:
    """A dataset's archive."""

    dataset: Dataset
    blobs: Blobs
    settings: Settings
    pointer: str

    @property
    def key(self) -> str:
        return f"archive-{self.dataset.sha256}"

    def fill(self, room: Room, going_on: GoingOn) -> str:
        room.need(self.dataset.size + self.dataset.unpacked_bytes)
        try:
            with closing(self.blobs.read(self.dataset.blob_key, 0, self.dataset.size)) as pieces:
                _write(pieces, room.scratch, going_on)
        except FileNotFoundError as error:
            raise Problem("reference_missing", "its archive is no longer in the blob store", pointer=self.pointer) from error
        if (found := sha256_of(room.scratch)) != self.dataset.sha256:
            detail = f"its archive has sha256 {found} in the blob store, and had {self.dataset.sha256} when it was uploaded"
            raise Problem("archive_damaged", detail, pointer=self.pointer)
        archives.unpack(room.scratch, room.files, self.settings.max_unpacked_bytes, self.pointer, lambda _: going_on())
        return f"sha256:{found}"


@dataclass(frozen=True)
class InBucket:
    """What a reference led to when the job was accepted, and nothing else."""

    led: Remote
    pin: Pin
    settings: Settings
    pointer: str

    @property
    def key(self) -> str:
        endpoint = self.settings.data_s3_endpoint_url or self.settings.s3_endpoint_url
        return f"s3-{hashlib.sha256(repr((endpoint, self.led.base, self.pin.version)).encode()).hexdigest()}"

    def fill(self, room: Room, going_on: GoingOn) -> str:
        buckets = Buckets(self.settings)
        objects, pin = insist(lambda: buckets.look(self.led, self.pointer), going_on)
        if pin.version != self.pin.version:
            detail = f"{self.led.shown}, of {self.pin.size} bytes, has become another, of {pin.size} bytes,"
            raise changed(detail, self.pointer)
        room.need(pin.size)
        if self.led.is_archive:
            insist(lambda: self._get(buckets, objects[0], room.scratch, going_on), going_on)
            return unpack(room, self.settings, self.pointer, going_on)
        for folder in {(room.files / one.name).parent for one in objects}:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        in_parallel(lambda one, alive: self._get(buckets, one, room.files / one.name, alive), objects, going_on)
        self._unpack_shards(room, pin, [one.name for one in objects if archives.is_shard(one.name)], going_on)
        return pin.version

    def _unpack_shards(self, room: Room, pin: Pin, names: list[str], going_on: GoingOn) -> None:
        """Each into a folder of its own name."""
        size, left, most = pin.size or 0, room.place / "shard", self.settings.max_unpacked_bytes

        def count(piece: int) -> None:
            nonlocal size
            going_on()
            size += piece
            room.grow(size)

        for name in names:
            shard = room.files / name
            left.mkdir(mode=0o700)
            most -= archives.unpack(shard, left, most, self.pointer, count)
            size -= shard.stat().st_size
            shard.unlink()
            left.rename(shard)

    def _get(self, buckets: Buckets, one: Object, place: Path, going_on: GoingOn) -> None:
        with closing(buckets.reading(self.led, one, 0, one.size, self.pointer)) as pieces, buckets.told(one.key, self.pointer):
            _write(pieces, place, going_on)


@dataclass(frozen=True)
class OverHttps:
    """An archive on an opened host, as it was when the job was accepted, where the host tells two versions apart."""

    led: Remote
    pin: Pin
    settings: Settings
    job_id: str
    pointer: str

    @property
    def key(self) -> str:
        known = (self.led.base, self.pin.version or self.job_id)
        return f"https-{hashlib.sha256(repr(known).encode()).hexdigest()}"

    def fill(self, room: Room, going_on: GoingOn) -> str:
        if self.pin.size is not None:
            room.need(self.pin.size)
        downloads, done, tries = Downloads(self.settings), Progress(), 0
        while not done.whole:
            before = done.bytes
            try:
                self._some(downloads, room, done, going_on)
            except Problem as problem:
                tries = 0 if done.bytes > before else tries + 1
                if problem.code != "reference_away" or tries > len(AGAIN_S):
                    raise
                pause(AGAIN_S[max(tries - 1, 0)], going_on)
        return unpack(room, self.settings, self.pointer, going_on)

    def _some(self, downloads: Downloads, room: Room, done: Progress, going_on: GoingOn) -> None:
        """From where the last try broke off, if the host can do so and still has the same."""
        start = done.bytes if done.validator else 0
        with downloads.ask(self.led, start, done.validator, self.pointer) as answer:
            if answer.version != self.pin.version:
                raise changed(f"{self.led.shown} has become another", self.pointer)
            done.bytes, done.validator = answer.start, answer.validator
            with room.scratch.open("r+b" if answer.start else "wb") as file:
                file.truncate(answer.start)
                file.seek(answer.start)
                for piece in answer.stream:
                    going_on()
                    if done.bytes + len(piece) > downloads.most:
                        detail = f"{self.led.shown} has more than {downloads.most} bytes, the most that is fetched"
                        raise Problem("reference_too_large", detail, pointer=self.pointer)
                    room.grow(done.bytes + len(piece))
                    file.write(piece)
                    done.bytes += len(piece)
        if answer.total is not None and done.bytes != answer.total:
            raise Problem(
                "reference_away", f"{self.led.shown} broke off at byte {done.bytes} of {answer.total}", pointer=self.pointer
            )
        done.whole = True


@dataclass
class Progress:
    """Of a download. validator: of what has come so far."""

    bytes: int = 0
    validator: str = ""
    whole: bool = False


def unpack(room: Room, settings: Settings, pointer: str, going_on: GoingOn) -> str:
    """The archive in the room's scratch; its version."""
    packed, written = room.scratch.stat().st_size, 0

    def count(size: int) -> None:
        nonlocal written
        going_on()
        written += size
        room.grow(packed + written)

    archives.unpack(room.scratch, room.files, settings.max_unpacked_bytes, pointer, count)
    return f"sha256:{sha256_of(room.scratch)}"


def _write(pieces: Iterable[bytes], place: Path, going_on: GoingOn) -> None:
    with place.open("wb") as file:
        for piece in pieces:
            going_on()
            file.write(piece)


def insist(step: Callable[[], T], going_on: GoingOn) -> T:
    """Again and again, for a while, where a place does not answer. Raises Problem."""
    for seconds in AGAIN_S:
        going_on()
        try:
            return step()
        except Problem as problem:
            if problem.code != "reference_away":
                raise
            pause(seconds, going_on)
    return step()


def pause(seconds: float, going_on: GoingOn) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        going_on()
        time.sleep(0.1)


def in_parallel(step: Callable[[Object, GoingOn], None], objects: Iterable[Object], going_on: GoingOn) -> None:
    """The first failure ends them all, and is raised. In daemon threads: a store that hangs holds no process that is to end."""
    todo, failures, lock = iter(objects), [], threading.Lock()

    def alive() -> None:
        going_on()
        if failures:
            raise InterruptedError("another object failed")

    def work() -> None:
        try:
            while True:
                with lock:
                    one = next(todo, None)
                if one is None:
                    return
                insist(lambda one=one: step(one, alive), alive)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
            failures.append(error)

    threads = [threading.Thread(target=work, name="fetch", daemon=True) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
