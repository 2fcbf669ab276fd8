"""Putting what a child has made into the blob store, and taking it back if the job was not ours any more."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import blobs as store
from app.blobs import Blobs
from app.errors import Problem
from app.jobs.lifecycle import Claim
from worker.adaptation.events import Result

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_MEDIA_TYPE = re.compile(r"[a-z]+/[A-Za-z0-9.+-]+(; ?[a-z]+=[A-Za-z0-9.-]+)?")
MOST_FILES = 100


@dataclass(frozen=True)
class File:
    name: str
    media_type: str
    path: Path
    blob_key: str


def files(result: Result, folder: Path, claim: Claim) -> list[File]:
    """The files that the result lists, and no others. Raises Problem child_died where the result does not hold: a name
    that is not a plain one, a file that is missing, or a link."""
    names = [listed.name for listed in result.artifacts]
    if not names or len(names) > MOST_FILES or len(set(names)) < len(names):
        raise Problem("child_died", f"its result lists {len(names)} files, {len(set(names))} of them different")
    found = []
    for listed in result.artifacts:
        if not _NAME.fullmatch(listed.name) or len(listed.media_type) > 100 or not _MEDIA_TYPE.fullmatch(listed.media_type):
            raise Problem("child_died", f"its result lists {listed.name[:200]!r} of type {listed.media_type[:100]!r}")
        path = folder / listed.name
        if not _is_plain(path):
            raise Problem("child_died", f"its result lists {listed.name!r}, which is not a file")
        key = f"jobs/{claim.tenant_id}/{claim.job_id}/{claim.attempt}/{listed.name}"
        found.append(File(listed.name, listed.media_type, path, key))
    return found


def _is_plain(path: Path) -> bool:
    """A regular file, not a link to one: a link could publish anything that the supervisor can read."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def keep(blobs: Blobs, found: list[File]) -> list[dict[str, Any]]:
    """Copies them in; the columns of their rows. Raises Problem disk_full, BlobsAwayError: then none is left that the store
    lets us delete."""
    rows = []
    try:
        for file in found:
            size, sha256 = blobs.put(file.path, file.blob_key)
            rows.append(
                {"name": file.name, "media_type": file.media_type, "size": size, "sha256": sha256, "blob_key": file.blob_key}
            )
    except BaseException as error:
        discard(blobs, found)
        if isinstance(error, Problem) and error.code == "storage_full":
            raise Problem("disk_full", "no space is left for the job's artifacts") from error
        raise
    return rows


def discard(blobs: Blobs, found: list[File]) -> None:
    store.discard(blobs, (file.blob_key for file in found))
