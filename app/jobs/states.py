"""The states of a job and what may follow what. Terminal states never change, but that a client may have one tried again that
failed or was cancelled."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"
    """Accepted and committed; any idle worker may claim it."""
    RUNNING = "running"
    """One worker holds the lease."""
    CANCELLING = "cancelling"
    """A worker holds the lease and has been asked to stop."""
    SUCCEEDED = "succeeded"
    """The model is published."""
    FAILED = "failed"
    """`error` says why; nothing is published."""
    CANCELLED = "cancelled"
    """A client wanted it so; nothing is published."""


FOLLOWS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED}),
    # back to queued: the worker vanished or was told to go, and another takes over from the last checkpoint
    Status.RUNNING: frozenset({Status.QUEUED, Status.CANCELLING, Status.SUCCEEDED, Status.FAILED}),
    Status.CANCELLING: frozenset({Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
}
RETRIED = frozenset({Status.FAILED, Status.CANCELLED})
TERMINAL = RETRIED | {Status.SUCCEEDED}
LEASED = frozenset({Status.RUNNING, Status.CANCELLING})
