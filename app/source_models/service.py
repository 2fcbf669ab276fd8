"""What a client can do with source models. A blob is kept before its row is committed, and deleted after the row is."""

from __future__ import annotations

import hashlib
import json

from sqlalchemy.exc import IntegrityError

from app import kept, storage
from app.blobs import Blobs, Staged, full_disk_told, lost
from app.database import Database
from app.errors import Problem, few
from app.ids import new_id
from app.settings import Settings
from app.source_models import queries
from app.source_models.table import SourceModel
from app.spec import InputSpec, SourceModelDescription
from app.weights_file import inspect

_JOBS_NAMED = 20


def require_units(input: InputSpec, pointer: str) -> None:
    """Of a new description alone: databases may hold others. Raises Problem invalid_request."""
    for name, value in (("mean", input.mean), ("std", input.std)):
        if not all(0 <= one <= 1 for one in value):
            detail = f"{name} {list(value)} is not of images in [0, 1]: divide what is of 0 to 255 by 255"
            raise Problem("invalid_request", detail, pointer=f"{pointer}/{name}")


def store(
    db: Database, blobs: Blobs, settings: Settings, tenant_id: str, description: SourceModelDescription, staged: Staged
) -> tuple[SourceModel, bool]:
    """The committed source model, and whether it is new: the same bytes with the same description are one. `staged` is
    used up, whatever comes of it. Raises Problem: what inspect() raises, storage_full, quota_exceeded; BlobsAwayError."""
    with staged:
        fingerprint = fingerprint_of(staged.sha256, description)
        if known := _known(db, tenant_id, fingerprint):
            if lost(blobs, known.blob_key):
                blobs.keep(staged, known.blob_key)
            return known, False
        storage.require(db, settings, tenant_id, staged.size)
        with full_disk_told():
            staged.file.flush()
        model_id = new_id("model")
        key = f"source_models/{tenant_id}/{model_id}"
        model = SourceModel(
            id=model_id,
            tenant_id=tenant_id,
            sha256=staged.sha256,
            fingerprint=fingerprint,
            size=staged.size,
            format=inspect(staged.path),
            description=description.model_dump(mode="json"),
            blob_key=key,
        )
        blobs.keep(staged, key)
    try:
        kept.commit(db, blobs, settings, model)
    except IntegrityError:
        if known := _known(db, tenant_id, fingerprint):
            return known, False
        raise
    return model, True


def fingerprint_of(sha256: str, description: SourceModelDescription) -> str:
    """Of the file and its description together, by canonical JSON."""
    content = json.dumps([sha256, description.model_dump(mode="json")], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def _known(db: Database, tenant_id: str, fingerprint: str) -> SourceModel | None:
    with db.read() as session:
        return queries.by_fingerprint(session, tenant_id, fingerprint)


def read(db: Database, tenant_id: str, model_id: str) -> SourceModel:
    """Raises Problem not_found, whether it never was or is another tenant's."""
    with db.read() as session:
        model = queries.by_id(session, tenant_id, model_id)
    if model is None:
        raise _not_found(model_id)
    return model


def _not_found(model_id: str) -> Problem:
    return Problem("not_found", f"no source model {model_id[:100]!r}")


def delete(db: Database, blobs: Blobs, tenant_id: str, model_id: str) -> None:
    """Raises Problem not_found; source_model_in_use where the foreign key of a job says so."""

    def in_use() -> Problem:
        with db.read() as session:
            jobs = list(queries.jobs_that_name(session, tenant_id, model_id, limit=_JOBS_NAMED))
        return Problem("source_model_in_use", f"{model_id} is named by {few(jobs, _JOBS_NAMED)}", jobs=jobs)

    kept.delete(db, blobs, lambda session: queries.by_id(session, tenant_id, model_id), _not_found(model_id), in_use)
