"""What the service says, as types. Members that a newer service adds are left alone; `raw` has them all.

A status, a phase, a kind of event is a plain text: a new one does not break an old client.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from modalbridge.errors import UnexpectedAnswer

FINAL = frozenset({"succeeded", "failed", "cancelled"})
MOMENTS = (
    "at", "created_at", "queued_at", "started_at", "finished_at", "updated_at", "gone_at", "next_at", "timestamp",
)  # fmt: skip


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Raises UnexpectedAnswer, which says of `what` that it is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UnexpectedAnswer(f"{what} is not JSON, but {text[:80]!r}") from error
    if not isinstance(found, dict):
        raise UnexpectedAnswer(f"{what} is not a JSON object, but {text[:80]!r}")
    return found


@dataclass(frozen=True)
class Document:
    """A JSON object of the service, by the names of its members."""

    @classmethod
    def read(cls, raw: Mapping[str, Any], **more: Any) -> Self:
        """Raises UnexpectedAnswer where a member is missing or cannot be read."""
        try:
            given = {one.name: _value(one.name, raw[one.name]) for one in fields(cls) if one.name in raw}
            return cls(**given, **more, **({"raw": raw} if "raw" in cls.__dataclass_fields__ else {}))
        except (TypeError, ValueError, AttributeError) as error:
            raise UnexpectedAnswer(f"this is no {cls.__name__}: {error}; is the client too old for the service?") from error


def raw() -> Any:
    """The field that holds the whole object."""
    return field(repr=False, compare=False, default_factory=dict)


@dataclass(frozen=True)
class Progress(Document):
    """step of `of` steps of the phase. fraction: of the whole job, 0 to 1. eta_s: seconds that are left, None while unknown."""

    phase: str
    step: int
    of: int
    fraction: float
    eta_s: float | None = None
    images_per_s: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JobState(Document):
    """A job as it was when it was read. request: as accepted, every default filled in. result: verdict, reasons, evidence.
    error: a problem document."""

    id: str
    name: str | None
    labels: Mapping[str, str]
    status: str
    phase: str | None
    progress: Progress | None
    method: str
    source_model_id: str
    request: Mapping[str, Any]
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    attempt: int
    lost_attempts: int
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    raw: Mapping[str, Any] = raw()

    @property
    def finished(self) -> bool:
        """Nothing will change any more."""
        return self.status in FINAL or self.finished_at is not None

    @property
    def verdict(self) -> str | None:
        """deploy, look_closer or do_not_deploy, once the job has succeeded."""
        return (self.result or {}).get("verdict")


@dataclass(frozen=True)
class Event(Document):
    """seq: counts from 1 within the job. kind: state, phase, started, data, checkpoint, warning, log."""

    seq: int
    attempt: int
    at: datetime
    kind: str
    message: str
    data: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = raw()


@dataclass(frozen=True)
class MetricPoint(Document):
    """A point of a series, such as bridging/L_rec."""

    series: str
    step: int
    value: float


@dataclass(frozen=True)
class Artifact(Document):
    """A file that a job has published. size: bytes."""

    name: str
    media_type: str
    size: int
    sha256: str
    attempt: int
    created_at: datetime
    raw: Mapping[str, Any] = raw()


@dataclass(frozen=True)
class SourceModel(Document):
    """size and sha256 are the file's. description: architecture, classes, input."""

    id: str
    sha256: str
    size: int
    format: str
    description: Mapping[str, Any]
    created_at: datetime
    raw: Mapping[str, Any] = raw()


@dataclass(frozen=True)
class Dataset(Document):
    """An archive of images. size and sha256 are the archive's. uri: as a job names all of it; a path inside may follow."""

    id: str
    name: str | None
    sha256: str
    size: int
    format: str
    images: int
    unpacked_bytes: int
    created_at: datetime
    raw: Mapping[str, Any] = raw()

    @property
    def uri(self) -> str:
        return f"dataset://{self.id}"


@dataclass(frozen=True)
class Webhook(Document):
    """types: what it hears of. gone_at: when it answered 410; nothing is sent to it since. secret: what messages are signed with;
    of a webhook that was just made alone."""

    id: str
    url: str
    types: Sequence[str]
    gone_at: datetime | None
    created_at: datetime
    secret: str | None = field(default=None, repr=False)
    raw: Mapping[str, Any] = raw()


@dataclass(frozen=True)
class Delivery(Document):
    """A message for a webhook, through all of its attempts. id: its `webhook-id`. status: pending, delivered or failed. next_at:
    while it is pending, of the next attempt. response_status: of the last answer; error: why there was none."""

    id: str
    type: str
    job_id: str | None
    payload: Mapping[str, Any]
    status: str
    attempts: int
    next_at: datetime | None
    response_status: int | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None
    raw: Mapping[str, Any] = raw()


@dataclass(frozen=True)
class WebhookMessage(Document):
    """What a webhook received. id: the same each time that it comes. type: job.succeeded, job.failed, job.cancelled, job.progress
    or webhook.test. timestamp: of what happened. data: of a job id, status, attempt and url."""

    id: str
    type: str
    timestamp: datetime
    data: Mapping[str, Any]
    raw: Mapping[str, Any] = raw()


@dataclass(frozen=True)
class Health(Document):
    """ready: jobs are accepted and run. checks: each part, "ok" or what is wrong with it. server_time: by the answer's Date,
    to the second."""

    ready: bool
    checks: Mapping[str, str]
    server_time: datetime | None = None


def _moment(value: Any) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "progress": lambda value: None if value is None else Progress.read(value),
    **dict.fromkeys(MOMENTS, _moment),
}


def _value(name: str, value: Any) -> Any:
    return _READERS.get(name, lambda same: same)(value)
