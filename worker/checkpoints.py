"""Checkpoints on their way to the blob store, and back on another machine."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path

import structlog

from app.blobs import Blobs
from app.blobs.staging import sha256_of
from app.jobs import checkpoints
from app.jobs.checkpoints import Kept
from app.jobs.lifecycle import Claim
from worker.adaptation.events import Warned
from worker.workspace import Workspace

AGAIN_S = 5.0
"""After a failure. Sooner where a newer checkpoint is written."""
LOOKS = 100
"""At most, for a checkpoint that is whole."""
log = structlog.get_logger()


class Sender:
    """Copies an attempt's checkpoints into the blob store, in a thread of its own: one at a time, and always the newest, so
    that a slow store misses some. What fails is logged and tried again: the job goes on without."""

    def __init__(self, blobs: Blobs, claim: Claim, space: Workspace) -> None:
        self.blobs, self.claim, self.space = blobs, claim, space
        self._changed = threading.Condition()
        self._written = self._sent = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def written(self) -> None:
        """The child has put a new one in its place."""
        with self._changed:
            self._written += 1
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()

    def up_to_date(self, within_s: float) -> bool:
        """Waits until the last one is there."""
        with self._changed:
            return self._changed.wait_for(lambda: self._sent == self._written, within_s)

    def close(self, within_s: float = 0.0) -> None:
        """No further one is begun; waits for the one on its way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(within_s)

    def _run(self) -> None:
        last: Kept | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._sent != self._written)
                if self._closed:
                    return
                written = self._written
            try:
                last = self._send(written, last)
            except Exception as error:  # noqa: BLE001 - whatever it is, the job does without
                log.warning("a checkpoint was not copied to the blob store", job_id=self.claim.job_id, error=str(error)[:300])
                with self._changed:
                    self._changed.wait_for(lambda seen=written: self._closed or self._written != seen, AGAIN_S)
                continue
            with self._changed:
                self._sent = written
                self._changed.notify_all()

    def _send(self, number: int, last: Kept | None) -> Kept:
        """A link of our own is sent: the child may replace its file meanwhile. Raises OSError, BlobsAwayError, Problem."""
        link = self.space.folder / "checkpoint.sending"
        link.unlink(missing_ok=True)
        os.link(self.space.checkpoint, link, follow_symlinks=False)
        try:
            if not stat.S_ISREG(link.lstat().st_mode):
                raise OSError("checkpoint.pt is not a plain file")
            sha256 = sha256_of(link)
            if last is not None and last.sha256 == sha256:
                return last
            key = checkpoints.key(self.claim.tenant_id, self.claim.job_id, self.claim.attempt, number, sha256)
            self.blobs.adopt(link, key)
        finally:
            link.unlink(missing_ok=True)
        if last is not None:
            self.blobs.delete(last.key)
        return Kept(key, self.claim.attempt, number, sha256)


def fetch(blobs: Blobs, claim: Claim, space: Workspace, newer_than: int) -> list[Warned]:
    """Puts the newest checkpoint of an earlier attempt that is kept, if that attempt is newer than `newer_than`, into the
    place of this attempt's. One that is not what was kept is deleted, and the next one taken. What to tell of it.
    Raises BlobsAwayError, OSError."""
    warnings: list[Warned] = []
    aside = space.folder / "checkpoint.fetched"
    for _ in range(LOOKS):
        wanted = [
            one for one in checkpoints.kept(blobs, claim.tenant_id, claim.job_id) if newer_than < one.attempt < claim.attempt
        ]
        if not wanted:
            break
        try:
            path = blobs.local(wanted[0].key, aside)
            if sha256_of(path) == wanted[0].sha256:
                _take(path, space.checkpoint)
                log.info("a checkpoint came from the blob store", job_id=claim.job_id, of_attempt=wanted[0].attempt)
                break
        except FileNotFoundError:
            continue  # its writer, which lost its lease and lives on, has put a newer one in its place: look again
        finally:
            aside.unlink(missing_ok=True)
        message = f"the checkpoint of attempt {wanted[0].attempt} in the blob store is damaged: it was deleted"
        warnings.append(Warned(code="checkpoint_damaged", message=message, data={"attempt": wanted[0].attempt}))
        blobs.delete(wanted[0].key)
    return warnings


def _take(path: Path, place: Path) -> None:
    """As a link, as workspace.prepare() does; a copy where the two lie on different file systems."""
    new = place.with_name(f"{place.name}.fetched")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:
        shutil.copyfile(path, new)
    new.replace(place)
