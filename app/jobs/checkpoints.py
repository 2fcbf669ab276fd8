"""Where a job's checkpoints lie in the blob store, so that another machine can go on from them.

A key says all that there is to know: the attempt that wrote it, so that a stale attempt can take no other's place; the
order within the attempt; and the content's sha256. None is ever written over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import structlog

from app.blobs import Blobs, BlobsAwayError, discard

FOLDER = "checkpoints"
_KEY = re.compile(
    rf"{FOLDER}/(?P<tenant>[^/]+)/(?P<job>[^/]+)/(?P<attempt>\d{{1,9}})-(?P<number>\d{{1,9}})-(?P<sha256>[0-9a-f]{{64}})"
)
log = structlog.get_logger()


@dataclass(frozen=True)
class Kept:
    key: str
    attempt: int
    number: int
    sha256: str


def key(tenant_id: str, job_id: str, attempt: int, number: int, sha256: str) -> str:
    return f"{_folder(tenant_id, job_id)}{attempt:06}-{number:06}-{sha256}"


def _folder(tenant_id: str, job_id: str) -> str:
    return f"{FOLDER}/{tenant_id}/{job_id}/"


def job_of(key: str) -> str | None:
    """Whose checkpoint it is. None: it is none."""
    found = _KEY.fullmatch(key)
    return found["job"] if found else None


def kept(blobs: Blobs, tenant_id: str, job_id: str) -> list[Kept]:
    """Those of a job, the newest first. Raises BlobsAwayError."""
    matches = [match for one in blobs.keys(_folder(tenant_id, job_id)) if (match := _KEY.fullmatch(one))]
    found = [Kept(match[0], int(match["attempt"]), int(match["number"]), match["sha256"]) for match in matches]
    return sorted(found, key=lambda one: (one.attempt, one.number), reverse=True)


def remove(blobs: Blobs, tenant_id: str, job_id: str) -> None:
    """All of a job that is over. What a store that is away keeps, housekeeping finds."""
    try:
        keys = blobs.keys(_folder(tenant_id, job_id))
    except BlobsAwayError as error:
        log.warning("the blob store is away: housekeeping deletes a job's checkpoints", job_id=job_id, error=str(error)[:300])
        return
    discard(blobs, keys)
