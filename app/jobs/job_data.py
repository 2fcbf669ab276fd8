"""What a job's references to data lead to, looked at before the job is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app import archives, layouts, remote
from app.blobs import Blobs
from app.buckets import Buckets
from app.database import Database
from app.datasets import queries, service
from app.downloads import Downloads
from app.errors import Problem
from app.references import Tree
from app.remote import Pin, Remote
from app.settings import Settings
from app.spec import DataSpec


@dataclass(frozen=True)
class Seen:
    """tree: for the layouts; None: the worker is the first that can look. pin: what it has to find there again."""

    tree: Tree | None
    pin: Pin


@dataclass
class Finder:
    """Looks at each place once, however many references lead into it."""

    db: Database
    blobs: Blobs
    settings: Settings
    tenant_id: str

    @cached_property
    def buckets(self) -> Buckets:
        return Buckets(self.settings)

    def look(self, led: Remote, pointer: str) -> Seen:
        if led.scheme == "dataset":
            return self._dataset(led, pointer)
        if led.scheme == "https":
            return Seen(None, Downloads(self.settings).look(led, pointer))
        return self._s3(led, pointer)

    def _s3(self, led: Remote, pointer: str) -> Seen:
        objects, pin = self.buckets.look(led, pointer)
        unseen = led.is_archive or any(archives.is_shard(one.name) for one in objects)
        return Seen(None if unseen else self.buckets.listing(led, objects, pointer), pin)

    def _dataset(self, reference: Remote, pointer: str) -> Seen:
        with self.db.read() as session:
            dataset = queries.by_id(session, self.tenant_id, reference.place)
        if dataset is None:
            raise Problem("not_found", f"no dataset {reference.place!r}", pointer=pointer)
        pin = Pin(uri=reference.base, version=f"sha256:{dataset.sha256}", size=dataset.unpacked_bytes)
        return Seen(service.contents(self.blobs, dataset), pin)


def check(finder: Finder, data: DataSpec, classes: Sequence[str]) -> list[Pin]:
    """All that can be said of a job's data without decoding an image, and a pin for each place beyond this machine's disk.
    Raises Problem, BlobsAwayError."""
    seen: dict[str, Seen] = {}
    for name in layouts.SETS:
        if (reference := getattr(data, name)) is None:
            continue
        if not remote.is_remote(reference.uri):
            layouts.check_set(data, name, classes, finder.settings.data_roots)
            continue
        pointer = f"/data/{name}/uri"
        led = remote.parse(reference.uri, pointer)
        if led.base not in seen:
            seen[led.base] = finder.look(led, pointer)
        # A file for each image is thousands of small requests to a bucket.
        small_files = led.scheme == "s3" and layouts.reads_a_file_an_image(data, name)
        if (tree := seen[led.base].tree) is not None and not small_files:
            layouts.check_set(data, name, classes, tree)
    return [one.pin for one in seen.values()]


def dataset_ids(pins: Sequence[Pin]) -> list[str]:
    return [led.place for pin in pins if (led := remote.parse(pin.uri, "")).scheme == "dataset"]
