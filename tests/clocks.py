"""Processes whose clock is wrong, by libfaketime."""

from __future__ import annotations

from pathlib import Path

import libfaketime


def ahead(seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is so far ahead of this machine's, or behind it; not the one that only measures how
    long something takes."""
    if not seconds:
        return {}
    _, given = libfaketime.get_reload_information()
    return given | {"LD_PRELOAD": f"{given['LD_LIBRARY_PATH']}/{given['LD_PRELOAD'].split(':')[0]}", "FAKETIME": f"{seconds:+d}"}


def forget(pid: int) -> None:
    """What libfaketime leaves of a process that was killed."""
    for path in Path("/dev/shm").glob(f"*faketime_*_{pid}"):
        path.unlink(missing_ok=True)
