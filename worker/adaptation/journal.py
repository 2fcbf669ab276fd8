"""What a job says: events as JSON lines, to its supervisor and into a file; and the one thing it is told: stop."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from worker.adaptation.events import DataRead, Phase, PhaseBegan, Stopped, Warned

NAME = "events.jsonl"
TRAINING: frozenset[Phase] = frozenset({"bridging", "transferring"})


class Journal:
    """Emits events, and remembers those that the report needs.

    stop_asked: set by SIGTERM (or Ctrl-C). The stages look at it between steps, so that a step is finished and a
    checkpoint written; in every other phase nothing would be saved by waiting, and the process ends at once.
    """

    def __init__(self, descriptor: int, folder: Path) -> None:
        self.descriptor = descriptor
        self.file = _opened(folder)
        self.phase: Phase = "preparing"
        self.step = 0
        self.stop_asked = False
        self.speaking = False
        self.data_read: dict[str, DataRead] = {}
        self.warnings: list[Warned] = []

    def __call__(self, event: BaseModel) -> None:
        if isinstance(event, DataRead):
            self.data_read[event.reference] = event
        if isinstance(event, Warned) and event not in self.warnings:
            self.warnings.append(event)
        self.speaking = True
        say(event, self.descriptor, self.file)
        self.speaking = False
        if self.stop_asked and self.phase not in TRAINING and not isinstance(event, Stopped):
            self.stop()

    def begin(self, phase: Phase, step: int = 0) -> None:
        self.phase, self.step = phase, step
        self(PhaseBegan(phase=phase))

    def close(self) -> None:
        self.file.close()

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as the request to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._asked())

    def _asked(self) -> None:
        self.stop_asked = True
        if self.phase not in TRAINING and not self.speaking:
            self.stop()

    def stop(self) -> None:
        """Say `stopped` and end the process. Not by an exception: one raised inside a signal handler surfaces anywhere,
        where a library may swallow it, or waits for threads that still decode images."""
        self(Stopped(phase=self.phase, step=self.step))
        os._exit(0)


def say(event: BaseModel, descriptor: int, file: IO[bytes]) -> None:
    """The event as one line, whole, to the supervisor and into the file. Each process of a job takes its turn, by a lock of that file:
    a pipe keeps no more than PIPE_BUF bytes together (pipe(7)), and a problem that lists tensors has more."""
    line = event.model_dump_json().encode() + b"\n"
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        try:
            file.write(line)
        except OSError as error:  # a full disk must not silence the event that says so
            print(f"{NAME}: {error}", file=sys.stderr)
        while line:
            line = line[os.write(descriptor, line) :]
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def added_to(folder: Path) -> IO[bytes]:
    """The file of events below `folder`; nowhere, where a full disk has no place for a file."""
    try:
        return (folder / NAME).open("ab+", buffering=0)
    except OSError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return Path(os.devnull).open("ab+", buffering=0)


def _opened(folder: Path) -> IO[bytes]:
    """A process killed while it wrote has left half a line behind."""
    file = added_to(folder)
    file.seek(0)
    said = file.read()
    if not said.endswith(b"\n") and said:
        file.truncate(said.rfind(b"\n") + 1)
    return file
