"""Scratch folders: work/<job>/attempt-<n>, one an attempt, so that a stale child can never touch the files of the next.

spec.json    what the engine is given
stderr.log   what its libraries print
tmp/         its TMPDIR
out/         its own: checkpoint, cache, artifacts
source_model-<n>  the weights, if the blob store is no folder
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint.pt"
CARRIED = ("cache", "artifacts", CHECKPOINT)
_JOB = re.compile(r"job_[0-9a-z]+")


@dataclass(frozen=True)
class Workspace:
    folder: Path

    @property
    def spec(self) -> Path:
        return self.folder / "spec.json"

    @property
    def stderr(self) -> Path:
        return self.folder / "stderr.log"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def source_model(self, place: int) -> Path:
        """Where one is copied to from a blob store that is no folder."""
        return self.folder / f"source_model-{place}"


def prepare(work_dir: Path, job_id: str, attempt: int) -> Workspace:
    """A folder for this attempt, with the checkpoint, the cache and, had it got so far, the artifacts of the newest
    earlier attempt here that left any. Raises OSError where the disk is full."""
    job = work_dir / job_id
    made = Workspace(job / f"attempt-{attempt}")
    # Of a database that was restored from a backup: its attempts begin again where these were.
    shutil.rmtree(made.folder, ignore_errors=True)
    for folder in (job, made.folder, made.tmp, made.out):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    earlier = [Workspace(job / f"attempt-{n}") for n in range(attempt - 1, 0, -1)]
    for name in CARRIED:
        left = next((former.out / name for former in earlier if (former.out / name).exists()), None)
        if left is not None:
            with suppress(FileNotFoundError):  # the worker that made it is just removing it
                _link(left, made.out / name)
    return made


def newest_checkpoint(work_dir: Path, job_id: str, before: int) -> int:
    """The attempt before that one that wrote the newest checkpoint here: later ones may have carried it, and written none. 0: none."""
    found = 0
    newest: Path | None = None
    for number in range(before - 1, 0, -1):
        checkpoint = Workspace(work_dir / job_id / f"attempt-{number}").checkpoint
        if checkpoint.exists() and (newest is None or checkpoint.samefile(newest)):
            found, newest = number, checkpoint
    return found


def _link(source: Path, destination: Path) -> None:
    """By hard links: the engine replaces its files and never writes into one, so neither attempt sees the other's. A
    folder appears whole or not at all, for this process too may be killed here."""
    if source.is_file():
        os.link(source, destination)
        return
    aside = destination.with_name(f"{destination.name}.linking")
    aside.mkdir()
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith("."):
            os.link(file, aside / file.name)
    aside.rename(destination)


def remove(work_dir: Path, job_id: str, through: int, but: Path | None = None) -> None:
    """The attempts of a job up to that one: a client may have had it tried again meanwhile, and a later one is at work here. What another
    process deletes or writes meanwhile is left to the next housekeeping."""
    job = work_dir / job_id
    for folder in [*job.glob("attempt-*"), *job.glob("gone-*")]:
        kind, _, number = folder.name.partition("-")
        if int(number) <= through and folder != but:
            # All at once to whoever looks, as a later attempt does for what it can carry.
            gone = folder.with_name(f"gone-{number}")
            with suppress(OSError):
                if kind == "attempt":
                    folder.rename(gone)
                shutil.rmtree(gone)
    with suppress(OSError):  # not empty, or gone
        job.rmdir()


def shed(work_dir: Path, job_id: str, through: int) -> None:
    """Makes room on a full disk: of the attempts of a job up to that one its newest checkpoint alone is left, for the next to carry."""
    newest = Workspace(work_dir / job_id / f"attempt-{newest_checkpoint(work_dir, job_id, through + 1)}")
    for path in (path for path in newest.folder.glob("*") if path != newest.out):
        _remove(path)
    for path in (path for path in newest.out.glob("*") if path != newest.checkpoint):
        _remove(path)
    remove(work_dir, job_id, through, but=newest.folder)


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def jobs_here(work_dir: Path) -> Iterator[str]:
    """Ids of the jobs that have a folder."""
    if work_dir.is_dir():
        yield from (folder.name for folder in work_dir.iterdir() if folder.is_dir() and _JOB.fullmatch(folder.name))
