"""What a job's data references lead to beyond this machine, brought into its cache before the job's process starts: that
one has no network and no credentials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from app import archives, remote
from app.blobs import Blobs
from app.blobs.staging import sha256_of
from app.datasets.table import Dataset
from app.errors import Problem
from app.layouts import SETS
from app.settings import Settings
from app.spec import DataSpec, Fetched
from worker.cache import Cache, Held, Room


class Source(Protocol):
    """What can be fetched as a whole. key: of its entry in the cache, the same for the same content."""

    @property
    def key(self) -> str: ...

    def fill(self, room: Room, going_on: Callable[[], None]) -> str:
        """Writes it into the room; its version. Raises Problem, BlobsAwayError, NotYetError, OSError."""


@dataclass(frozen=True)
class Archive:
    """An uploaded dataset."""

    dataset: Dataset
    blobs: Blobs
    settings: Settings
    pointer: str

    @property
    def key(self) -> str:
        return f"archive-{self.dataset.sha256}"

    def fill(self, room: Room, going_on: Callable[[], None]) -> str:
        room.need(self.dataset.size + self.dataset.unpacked_bytes)
        try:
            with closing(self.blobs.read(self.dataset.blob_key, 0, self.dataset.size)) as pieces, room.scratch.open("wb") as file:
                for piece in pieces:
                    going_on()
                    file.write(piece)
        except FileNotFoundError as error:
            raise Problem("reference_missing", "its archive is no longer in the blob store", pointer=self.pointer) from error
        if (found := sha256_of(room.scratch)) != self.dataset.sha256:
            detail = f"its archive has sha256 {found} in the blob store, and had {self.dataset.sha256} when it was uploaded"
            raise Problem("archive_damaged", detail, pointer=self.pointer)
        archives.unpack(room.scratch, room.files, self.settings.max_unpacked_bytes, self.pointer, lambda _: going_on())
        return f"sha256:{found}"


def fetch(sources: Mapping[str, Source], cache: Cache, going_on: Callable[[], None]) -> dict[str, Held]:
    """By what each reference has as its base. Where one fails, none is held. Raises what Cache.hold raises."""
    held: dict[str, Held] = {}
    try:
        for base, source in sources.items():
            beside = sum(one.size for one in held.values())
            held[base] = cache.hold(source.key, lambda room, source=source: source.fill(room, going_on), going_on, beside)
        going_on()
    except BaseException:
        release(held)
        raise
    return held


def remote_uris(data: DataSpec) -> dict[str, str]:
    """The references that are to be fetched, with a pointer to each."""
    named = {name: reference.uri for name in SETS if (reference := getattr(data, name)) is not None}
    return {uri: f"/data/{name}/uri" for name, uri in reversed(named.items()) if remote.is_remote(uri)}


def sources(uris: Mapping[str, str], datasets: Mapping[str, Dataset], blobs: Blobs, settings: Settings) -> dict[str, Source]:
    """By base: references into one are fetched once. datasets: the job's, by id."""
    found: dict[str, Source] = {}
    for uri, pointer in uris.items():
        led = remote.parse(uri, pointer)
        found.setdefault(led.base, Archive(datasets[led.place], blobs, settings, pointer))
    return found


def release(held: Mapping[str, Held]) -> None:
    for one in held.values():
        one.close()


def placed(held: Mapping[str, Held], uris: Mapping[str, str]) -> dict[str, Fetched]:
    """uris: of the job's references, with a pointer to each. Raises Problem reference_missing."""
    found = {}
    for uri, pointer in uris.items():
        led = remote.parse(uri, pointer)
        one = held[led.base]
        found[uri] = Fetched(path=str(one.folder / led.inner), version=one.version)
    return found
