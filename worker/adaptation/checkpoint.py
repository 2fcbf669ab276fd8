"""Checkpoints: all that a job needs to go on in another process, bit for bit. One file, replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the state, tensors and plain values in dicts and lists, aside, then put it in the place of the former one: a
    process killed at any instant leaves one whole checkpoint. Raises OSError where the disk is full."""
    aside = folder / f"{NAME}.partial"
    try:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / NAME)
        sync(folder)
    finally:
        aside.unlink(missing_ok=True)


def load(folder: Path) -> dict[str, Any] | None:
    """The last state, on the CPU, or None where none was written. Nothing in it can run code."""
    path = folder / NAME
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def sync(folder: Path) -> None:
    """Make a rename in the folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
