"""What a client can do with datasets. An archive is kept before its row is committed, and deleted after the row is."""

from __future__ import annotations

from contextlib import closing

from sqlalchemy.exc import IntegrityError

from app import archives, kept, listing, storage
from app.blobs import Blobs, Staged, full_disk_told, lost
from app.database import Database
from app.datasets import queries
from app.datasets.table import Dataset
from app.errors import Problem, few
from app.ids import new_id
from app.listing import Listing
from app.references import is_hidden, is_image
from app.settings import Settings

POINTER = "/dataset"
_JOBS_NAMED = 20


def store(
    db: Database, blobs: Blobs, settings: Settings, tenant_id: str, name: str | None, staged: Staged
) -> tuple[Dataset, bool]:
    """The committed dataset, and whether it is new: the same bytes are one. The archive is read to its end first. `staged` is
    used up, whatever comes of it. Raises Problem as app.listing.of_archive does, storage_full, quota_exceeded; BlobsAwayError."""
    with staged:
        with full_disk_told():
            staged.file.flush()
        known = _known(db, tenant_id, staged.sha256)
        if known is not None:
            if lost(blobs, known.blob_key, known.listing_key):
                contents, _ = listing.of_archive(staged.path, settings.max_unpacked_bytes, POINTER)
                _keep(blobs, staged, contents, known)
            return known, False
        storage.require(db, settings, tenant_id, staged.size)
        contents, unpacked_bytes = listing.of_archive(staged.path, settings.max_unpacked_bytes, POINTER)
        dataset_id = new_id("dataset")
        key = f"datasets/{tenant_id}/{dataset_id}"
        dataset = Dataset(
            id=dataset_id,
            tenant_id=tenant_id,
            name=name,
            sha256=staged.sha256,
            size=staged.size,
            format=archives.format_of(staged.path, POINTER),
            images=sum(is_image(name) and not is_hidden(name) for name in contents.texts),
            unpacked_bytes=unpacked_bytes,
            blob_key=key,
            listing_key=f"{key}.listing",
        )
        dataset.listing_size = _keep(blobs, staged, contents, dataset)
    try:
        kept.commit(db, blobs, settings, dataset)
    except IntegrityError:
        if known := _known(db, tenant_id, dataset.sha256):
            return known, False
        raise
    return dataset, True


def _keep(blobs: Blobs, staged: Staged, contents: Listing, dataset: Dataset) -> int:
    """The archive and its listing, of which the size is given back."""
    blobs.keep(staged, dataset.blob_key)  # first: it may take long, and what no row names for an hour is swept away
    with blobs.stage() as listed:
        listed.write(contents.packed())
        blobs.keep(listed, dataset.listing_key)
        return listed.size


def _known(db: Database, tenant_id: str, sha256: str) -> Dataset | None:
    with db.read() as session:
        return queries.by_sha256(session, tenant_id, sha256)


def read(db: Database, tenant_id: str, dataset_id: str) -> Dataset:
    """Raises Problem not_found, whether it never was or is another tenant's."""
    with db.read() as session:
        dataset = queries.by_id(session, tenant_id, dataset_id)
    if dataset is None:
        raise _not_found(dataset_id)
    return dataset


def contents(blobs: Blobs, dataset: Dataset) -> Listing:
    """What is in it. Raises BlobsAwayError, Problem not_found where it was deleted a moment ago."""
    try:
        with closing(blobs.read(dataset.listing_key, 0, dataset.listing_size)) as reading:
            return listing.unpacked(reading)
    except FileNotFoundError as error:
        raise _not_found(dataset.id) from error


def _not_found(dataset_id: str) -> Problem:
    return Problem("not_found", f"no dataset {dataset_id[:100]!r}")


def delete(db: Database, blobs: Blobs, tenant_id: str, dataset_id: str) -> None:
    """Raises Problem not_found; dataset_in_use where the foreign key of a job says so."""

    def in_use() -> Problem:
        with db.read() as session:
            jobs = list(queries.jobs_that_name(session, tenant_id, dataset_id, limit=_JOBS_NAMED))
        return Problem("dataset_in_use", f"{dataset_id} is named by {few(jobs, _JOBS_NAMED)}", jobs=jobs)

    kept.delete(db, blobs, lambda session: queries.by_id(session, tenant_id, dataset_id), _not_found(dataset_id), in_use)
