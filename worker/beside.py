"""A call in a thread beside the one that renews the lease."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class NotYetError(Exception):
    """What is wanted cannot be had now, and may be in a while."""


class GaveUpError(Exception):
    """The job was lost or is to stop: what it waited for is wanted no longer."""


class Call(Generic[T]):
    """Begins at once. In a daemon thread, so that a store that hangs does not hold a process that wants to end; what it logs is
    of the same job and trace."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._done = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        threading.Thread(target=contextvars.copy_context().run, args=(self._run,), name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again by result(), in the thread that asked
            self._error = error
        finally:
            self._done.set()

    def ended(self, within_s: float) -> bool:
        return self._done.wait(within_s)

    def result(self) -> T:
        """Of a call that has ended: what it returned. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]
