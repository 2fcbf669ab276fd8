"""The asynchronous client, called as the blocking one is, each call in a real event loop: so that one test is for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

from modalbridge import AsyncClient, AsyncDatasets, AsyncJob, AsyncJobs, AsyncSourceModels, AsyncWebhooks

OURS = (AsyncClient, AsyncDatasets, AsyncJob, AsyncJobs, AsyncSourceModels, AsyncWebhooks)


class Blocking:
    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target, self._runner = target, runner

    def __getattr__(self, name: str) -> Any:
        return _wrapped(getattr(self._target, name), self._runner)

    def close(self) -> None:
        self._runner.run(self._target.aclose())


def _wrapped(value: Any, runner: asyncio.Runner) -> Any:
    if isinstance(value, OURS):
        return Blocking(value, runner)
    if inspect.iscoroutine(value):
        return _wrapped(runner.run(value), runner)
    if isinstance(value, AsyncIterator):
        return _iterated(value, runner)
    if inspect.ismethod(value):
        return lambda *given, **named: _wrapped(
            value(*map(_bare, given), **{name: _bare(one) for name, one in named.items()}), runner
        )
    return value


def _bare(value: Any) -> Any:
    return value._target if isinstance(value, Blocking) else value


def _iterated(items: Any, runner: asyncio.Runner) -> Iterator[Any]:
    async def following() -> Any:
        return await anext(items, _END)

    class _Items:
        def close(self) -> None:
            runner.run(items.aclose())

    with closing(_Items()):
        while (item := runner.run(following())) is not _END:
            yield _wrapped(item, runner)


_END = object()
