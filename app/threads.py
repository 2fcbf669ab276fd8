"""Where the long part of a request is done. Whatever waits for a disk or the database shares the threads of anyio; what may take
a minute of its own, as to look through an archive of a hundred thousand names, has a few apart, so that it delays only its like."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request

AT_ONCE = 4
"""Each may hold half a gigabyte, while it reads an archive's directory."""
T = TypeVar("T")


def checks() -> CapacityLimiter:
    """One for each application: its state.checks."""
    return CapacityLimiter(AT_ONCE)


async def check(request: Request, work: Callable[..., T], *given: object) -> T:
    """What `work` returns or raises: of what a client has sent, looked through and stored."""
    return await run_sync(partial(work, *given), limiter=request.app.state.checks)
