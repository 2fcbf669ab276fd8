"""What a job's references to data lead to, looked at before the job is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app import layouts, remote
from app.blobs import Blobs
from app.database import Database
from app.datasets import queries, service
from app.errors import Problem
from app.references import Tree
from app.remote import Pin, Remote
from app.settings import Settings
from app.spec import DataSpec


@dataclass(frozen=True)
class Seen:
    """tree: for the layouts. pin: what the worker has to find there again."""

    tree: Tree
    pin: Pin


@dataclass
class Finder:
    """Looks at each place once, however many references lead into it."""

    db: Database
    blobs: Blobs
    settings: Settings
    tenant_id: str

    def dataset(self, reference: Remote, pointer: str) -> Seen:
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
            seen[led.base] = finder.dataset(led, pointer)
        layouts.check_set(data, name, classes, seen[led.base].tree)
    return [one.pin for one in seen.values()]


def dataset_ids(pins: Sequence[Pin]) -> list[str]:
    return [led.place for pin in pins if (led := remote.parse(pin.uri, "")).scheme == "dataset"]
