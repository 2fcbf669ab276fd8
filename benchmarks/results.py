"""results.jsonl: one line a run, appended when the run is done. A line, once there, is never changed."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Key = tuple[str, str, int, str, str]


def key(line: Line) -> Key:
    """What makes two runs the same one: data, variant, seed, digest of the settings, digest of the source weights."""
    return line["data"], line["variant"], line["seed"], line["digest"], line["source"]["sha256"]


def done(lines: Iterable[Line]) -> set[Key]:
    """The runs that need not be run again. One that failed is tried again."""
    return {key(line) for line in lines if line["error"] is None}


def read(path: Path) -> list[Line]:
    """The whole lines. What a killed process left of a last one is left out, and said on stderr. Raises ValueError where
    a line before the last cannot be read."""
    if not path.is_file():
        return []
    *whole, torn = path.read_bytes().split(b"\n")
    if torn:
        print(f"{path.name}: the last line is torn and is left out; its run is done again", file=sys.stderr)
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return lines


def append(path: Path, lines: Iterable[Line]) -> None:
    """All of them or none, on the disk when this returns; a torn line that is there is dropped. Several processes may."""
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text)
        os.fsync(file.fileno())
