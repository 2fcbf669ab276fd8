"""What an exception means to the user: one place that turns any of them into a Problem of the table."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import torch

from app.errors import Problem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
SMALL = 2**20


def problem_of(error: BaseException, folder: Path) -> Problem:
    """disk_full, out_of_memory, or `internal` for what nobody foresaw. folder: where the job writes."""
    chain = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in chain:
        if isinstance(cause, Problem):
            return cause
        said = str(cause)
        if (isinstance(cause, OSError) and cause.errno in FULL) or any(words in said for words in FULL_WORDS):
            free = shutil.disk_usage(folder).free // SMALL if folder.exists() else 0
            return Problem("disk_full", f"the job could not write: {said[:200]}; {free} MiB are free")
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or (
            isinstance(cause, OSError) and cause.errno == errno.ENOMEM
        ):
            return Problem("out_of_memory", said.splitlines()[0][:300] if said else "memory ran out")
        if isinstance(cause, RuntimeError) and any(words in said for words in OUT_OF_MEMORY_WORDS):
            return Problem("out_of_memory", said.splitlines()[0][:300])
    return Problem("internal", f"{type(error).__name__}: {str(error)[:300]}")
