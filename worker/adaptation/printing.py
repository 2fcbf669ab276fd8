"""Where whatever is printed goes: to a file beside the job's, whose disk may be full. Then it is lost, and no more than that."""

from __future__ import annotations

import io
import os


class _Spilling(io.RawIOBase):
    """What cannot be written is dropped. By default Python raises in the middle of what was printed, and ends with code 120 where
    the last words did not fit."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def write(self, words: bytes) -> int:  # type: ignore[override]
        try:
            return os.write(self.descriptor, words)
        except OSError:
            return len(words)


def spilling(descriptor: int) -> io.TextIOWrapper:
    """In place of sys.stderr."""
    return io.TextIOWrapper(io.BufferedWriter(_Spilling(descriptor)), "utf-8", "backslashreplace", line_buffering=True)
