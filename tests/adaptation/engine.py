"""`python -m worker.adaptation` as a process of its own, forked off one that has imported it: to import torch takes seconds,
and the tests start it dozens of times. As the command itself it is started in test_run.py and by the workers."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO

from worker.adaptation.events import Event, parse

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["worker.adaptation.__main__", "worker.adaptation.run", "tests.adaptation.engine"])


@dataclass(frozen=True)
class Ended:
    """returncode: minus the signal's number where it was killed."""

    returncode: int
    events: list[Event]
    stderr: str


@contextmanager
def started(folder: Path, out: str, *more: str, file: str = "spec.json", largest_file: int | None = None) -> Iterator[Running]:
    """Runs folder/spec.json into folder/out. largest_file: bytes that it may write into one file."""
    arguments = [str(folder / file), "--out", str(folder / out), *more]
    reader, writer = SERVER.Pipe(duplex=False)
    stderr = folder / f"{out}.stderr"
    process = SERVER.Process(target=_main, args=(writer, stderr, arguments, largest_file))
    process.start()
    writer.close()
    with os.fdopen(os.dup(reader.fileno()), "rb") as stdout:
        reader.close()
        try:
            yield Running(process, stdout, stderr)
        finally:
            process.kill()
            process.join()
            process.close()


@dataclass(frozen=True)
class Running:
    process: ForkServerProcess
    stdout: IO[bytes]
    stderr: Path

    def end(self, until: Callable[[Event], bool] | None = None, by: signal.Signals = signal.SIGKILL) -> Ended:
        """Hears it out; sends the signal when an event says so."""
        events = []
        for line in self.stdout:
            events.append(parse(line))
            if until is not None and until(events[-1]):
                os.kill(self.process.pid, by)
                until = None
        self.process.join()
        return Ended(self.process.exitcode, events, self.stderr.read_text())


def engine(folder: Path, *more: str, out: str = "out", **how) -> Ended:
    """Runs it to its end."""
    with started(folder, out, *more, **how) as running:
        return running.end()


def _main(writer: Connection, stderr: Path, arguments: list[str], largest_file: int | None) -> int:
    import torch

    from worker.adaptation.__main__ import main

    with stderr.open("ab") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(writer.fileno(), 1)
    writer.close()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    raise SystemExit(main(arguments))
