"""A job's process as its supervisor holds it: its lines, its signals, its end."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

MAX_LINE = 2**20
PIPE_WAIT_S = 5.0
"""A process that left the group may hold the pipe open for ever."""
ORPHANS_S = 2.0
"""For what was killed with a process to be gone."""
LAST_S = 60.0
"""A process that is still there so long after SIGKILL is in a system call that does not return, as after a GPU's error."""
LINES_HELD = 256
"""Lines that wait here at most; then the pipe fills, and the child waits."""


class Child:
    """Started in a session of its own, so that its whole process group can be killed."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str], stderr: Path) -> None:
        self._stderr = stderr
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES_HELD)
        self._silent = False
        self._killed_at: float | None = None
        with stderr.open("wb") as errors:
            self.process = subprocess.Popen(  # noqa: S603 - the supervisor's own command line, nothing of a client's
                command,
                cwd=folder,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                close_fds=True,
            )
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), name="child's lines", daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(MAX_LINE):
                self._lines.put(line)
                while not line.endswith(b"\n") and (line := pipe.readline(MAX_LINE)):
                    continue  # the rest of a line that is too long: nothing of ours is
        self._lines.put(None)

    def lines(self, seconds: float) -> Iterator[bytes]:
        """What it says within the next seconds; ends early when it can say no more."""
        until = time.monotonic() + seconds
        while not self._silent:
            try:
                line = self._lines.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                return
            if line is None:
                self._silent = True
                return
            yield line

    @property
    def silent(self) -> bool:
        """Everything that it said has been heard, and it can say no more."""
        return self._silent

    def ended(self) -> bool:
        """Looks without reaping: until then its number, which is its group's, belongs to nobody else."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ask_to_stop(self) -> None:
        if not self.ended():
            os.kill(self.process.pid, signal.SIGTERM)  # not Popen.send_signal, which reaps

    def kill(self) -> None:
        """The whole group, by SIGKILL."""
        if self.process.returncode is None:
            self._killed_at = self._killed_at or time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def outlives_its_death(self) -> bool:
        """It was killed long ago, and has not ended: nobody can make it."""
        return self._killed_at is not None and not self.ended() and time.monotonic() - self._killed_at > LAST_S

    def reap(self) -> int:
        """Waits for its end, and ends whatever of its group is left. The exit code; negative: the signal that killed it, or
        cannot."""
        while not self.ended():
            if self.outlives_its_death:
                return -signal.SIGKILL
            time.sleep(0.01)
        self.kill()
        code = self.process.wait()
        self._bury()
        return code

    def _bury(self) -> None:
        """What the process had started is its parent's to reap, once it is gone; in a container, of which the worker is the first
        process, this one's."""
        until = time.monotonic() + ORPHANS_S
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.process.pid, os.WNOHANG)[0] != 0 or time.monotonic() < until:
                time.sleep(0.01)

    def close(self) -> None:
        """Killed if it still runs; nothing of it is left afterwards, unless it outlives its death."""
        if self.process.returncode is None:
            self.kill()
            self.reap()
        until = time.monotonic() + PIPE_WAIT_S
        while not self._silent and time.monotonic() < until:
            for _ in self.lines(0.1):
                continue
        self._reader.join(PIPE_WAIT_S if self._silent else 0)

    def last_words(self, most: int = 4000) -> str:
        """The end of what it wrote to stderr."""
        with self._stderr.open("rb") as file:
            file.seek(max(0, self._stderr.stat().st_size - most))
            return file.read().decode("utf-8", "replace").strip()
