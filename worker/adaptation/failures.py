"""What an exception means to the user: one place that turns any of them into a Problem of the table."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import torch

from app.errors import Problem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
DEVICE_WORDS = ("CUDA error", "CUDNN_STATUS", "NCCL error")
OURS = (
    "device-side assert",
    "invalid argument",
    "invalid configuration argument",
    "_NOT_SUPPORTED",
    "_BAD_PARAM",
    "_INVALID_VALUE",
)
"""An index out of bounds, a shape that no kernel takes, or the like: a fault of this program, on any GPU."""
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
SMALL = 2**20


def problem_of(error: BaseException, folder: Path) -> Problem:
    """out_of_memory, device_failed, disk_full, or `internal` for what nobody foresaw. folder: where the job writes."""
    chain = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in chain:
        if isinstance(cause, Problem):
            return cause
        said, number = str(cause), cause.errno if isinstance(cause, OSError) else None
        of_torch = isinstance(cause, RuntimeError)
        if (
            isinstance(cause, MemoryError | torch.OutOfMemoryError)
            or number == errno.ENOMEM
            or (of_torch and any(words in said for words in OUT_OF_MEMORY_WORDS))
        ):
            return Problem("out_of_memory", first_line(said, OUT_OF_MEMORY_WORDS) or "memory ran out")
        # Before a full disk: that of NCCL is /dev/shm.
        if isinstance(cause, torch.AcceleratorError) or (of_torch and any(words in said for words in DEVICE_WORDS)):
            if any(words in said for words in OURS):
                break
            _, _, last = said.partition("Last error:\n")  # as NCCL ends
            return Problem("device_failed", " ".join([first_line(said, DEVICE_WORDS), *last.splitlines()[:1]])[:600])
        if number in FULL or any(words in said for words in FULL_WORDS):
            free = shutil.disk_usage(folder).free // SMALL if folder.exists() else 0
            return Problem("disk_full", f"the job could not write: {said[:200]}; {free} MiB are free")
    return Problem("internal", f"{type(error).__name__}: {str(error)[:300]}")


def first_line(said: str, words: tuple[str, ...] = ()) -> str:
    """The first line that has one of the words, or the first; 300 characters of it at most."""
    lines = said.splitlines() or [""]
    return next((line for line in lines if any(word in line for word in words)), lines[0])[:300]
