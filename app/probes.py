"""What tells of the service itself answers in any case: though a part hangs, and though its requests hold every thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
AT_ONCE = 8


class Question(Generic[T]):
    """Put to what may hang, in a daemon thread. Those who ask at the same time share one answer, so that it costs one thread,
    however often it is asked."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work, self._name = work, name
        self._lock = threading.Lock()
        self._answer: Future[T] | None = None

    def put(self) -> Future[T]:
        with self._lock:
            if self._answer is None or self._answer.done():
                self._answer = Future()
                try:
                    threading.Thread(target=self._ask, args=(self._answer,), name=self._name, daemon=True).start()
                except (RuntimeError, MemoryError) as error:  # no thread can be started; the next who asks tries again
                    self._answer.set_exception(error)
            return self._answer

    def _ask(self, answer: Future[T]) -> None:
        try:
            answer.set_result(self._work())
        except Exception as error:  # noqa: BLE001 - raised where the answer is wanted
            answer.set_exception(error)


class Probes:
    """Threads of their own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "probe")

    async def tell(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
