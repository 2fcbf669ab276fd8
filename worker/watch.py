"""A job's process from its first line to its end: it is heard, and stopped where it is to stop or does not end by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worker.adaptation.events import Event
from worker.child import Child
from worker.lease import Lease

Why = Literal["asked", "outstayed", "time_limit", "lost"]
PIPE_HELD_S = 10.0
"""For what a process leaves behind in its pipe. Something that left its group may hold that for ever."""


@dataclass(frozen=True)
class Ending:
    """code: the process's; negative: by that signal. ended_by: why this worker ended it; None: it ended by itself."""

    code: int
    ended_by: Why | None


class Watch:
    """hear: told each line's event, None where it is none and where nobody listens for now. limit_at: when its time is up."""

    def __init__(self, child: Child, lease: Lease, limit_at: float, hear: Callable[[Event | None], None]) -> None:
        self.child, self.lease, self.limit_at, self.hear = child, lease, limit_at, hear
        self._ended_by: Why | None = None
        self._grace_since: float | None = None

    def run(self) -> Ending:
        """Until the process is gone and heard out, or its job is another's, or nobody can end it."""
        ended_at = None
        while not (self.child.silent and ended_at):
            self._listen()
            self.lease.tell()
            if self.lease.lost:
                self._kill("lost")
                break
            if self.child.outlives_its_death:
                break  # it is in the kernel, and will not come back from there: the job need not wait for it
            if self.child.ended():
                ended_at = ended_at or time.monotonic()
                self.child.kill()  # what is left of its group
                if time.monotonic() > ended_at + PIPE_HELD_S:
                    break
            else:
                self._steer()
        return Ending(self.child.reap(), self._ended_by)

    def _listen(self) -> None:
        """For a tick at most; not at all while more is held than may be."""
        heard = self.lease.heard
        if heard.full:
            self.hear(None)  # it may well speak
        if heard.full or self.child.silent:
            time.sleep(self.lease.tick_s)
            return
        for line in self.child.lines(self.lease.tick_s):
            self.hear(heard.hear(line))
            if heard.full:
                break

    def _steer(self) -> None:
        """Asks the process to stop, and kills it where it does not, where it has said its last word and does not end, or where its
        time is up."""
        now = time.monotonic()
        if self._ended_by is None and self.lease.to_end:
            self._ended_by = "asked"
            self.child.ask_to_stop()
        if self._ended_by == "asked" or self.lease.heard.over:
            self._grace_since = self._grace_since or now
            if now - self._grace_since > self.lease.worker.settings.cancel_grace_s:
                self._kill("outstayed")
        elif now > self.limit_at:
            self._kill("time_limit")

    def _kill(self, why: Why) -> None:
        self._ended_by = self._ended_by or why
        self.child.kill()
