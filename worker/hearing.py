"""A child's lines, heard and held until a transaction takes them. What it says is data, to be doubted: no line can
break the supervisor."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from app.errors import CODES, Problem
from app.jobs import events, lifecycle
from app.jobs.lifecycle import Claim
from app.jobs.table import Job
from worker.adaptation.events import (
    Checkpointed,
    DataRead,
    Event,
    Failed,
    Logged,
    Metric,
    PhaseBegan,
    Progress,
    Result,
    Started,
    Stopped,
    Warned,
    parse,
)

HELD = 20_000
"""Events and metric points held at most while the database is away; then the child has to wait."""
MEMBERS = frozenset({"type", "title", "status", "code", "detail", "instance", "remedy", "pointer"})
"""Of a problem document; the rest is its context."""


@dataclass
class Hearing:
    """phase, progress, metrics, rows: what no transaction has taken yet. result, failed, stopped: the child's last word."""

    phase: str | None = None
    progress: dict[str, Any] | None = None
    metrics: dict[tuple[str, int], float] = field(default_factory=dict)
    rows: list[tuple[str, str, dict[str, Any] | None]] = field(default_factory=list)
    result: Result | None = None
    failed: Problem | None = None
    stopped: bool = False

    @property
    def full(self) -> bool:
        return len(self.metrics) + len(self.rows) >= HELD

    @property
    def over(self) -> bool:
        """The child has said its last word."""
        return self.result is not None or self.failed is not None or self.stopped

    @property
    def waiting(self) -> bool:
        return bool(self.rows or self.metrics or self.phase or self.progress)

    def hear(self, line: bytes) -> Event | None:
        """What the line says; None: it is no event."""
        try:
            # PostgreSQL stores no null character, in text or in JSON.
            event = parse(line.replace(b"\\u0000", b"\\ufffd"))
        except ValidationError:
            self.log(f"not an event: {line[:500].decode('utf-8', 'replace').rstrip()}")
            return None
        match event:
            case Progress():
                self.progress = document(event)
            case Metric():
                if math.isfinite(event.value) and 0 <= event.step < 2**63:
                    self.metrics[event.series[:100], event.step] = event.value
            case PhaseBegan():
                self.phase = event.phase
                self.rows.append(("phase", event.phase, None))
            case Started():
                resumed = f", resumed from {event.resumed_from[0]}, step {event.resumed_from[1]}" if event.resumed_from else ""
                self.rows.append(("started", f"started on {event.device_name}{resumed}", document(event)))
            case DataRead():
                broken = f", {event.broken} broken" if event.broken else ""
                self.rows.append(("data", f"{event.reference}: {event.images} images{broken}; {event.scaling}", document(event)))
            case Checkpointed():
                self.rows.append(("checkpoint", f"checkpoint at {event.phase}, step {event.step}", document(event)))
            case Warned():
                self.warn(event)
            case Logged():
                self.log(event.message)
            case Stopped():
                self.stopped = True
                self.log(f"stopped at {event.phase}, step {event.step}")
            case Failed():
                self.failed = problem(document(event)["problem"])
            case Result():
                self.result = event
        return event

    def warn(self, event: Warned) -> None:
        self.rows.append(("warning", event.message, document(event)))

    def log(self, message: str) -> None:
        self.rows.append(("log", message, None))

    def write(self, session: Session, claim: Claim, *, now: datetime) -> Job | None:
        """All that waits, as rows. None: the attempt has lost its job, and nothing is written."""
        job = lifecycle.record(session, claim, now=now, phase=self.phase, progress=self.progress)
        if job is not None:
            lifecycle.record_metrics(session, claim, self.metrics, now=now)
            for kind, message, data in self.rows:
                events.append(session, job, kind, message, data, now=now)
        return job

    def written(self) -> None:
        """The transaction is committed."""
        self.phase = self.progress = None
        self.metrics, self.rows = {}, []

    def take(self) -> Hearing:
        """What waits, for a transaction in another thread; what is heard meanwhile comes after it."""
        taken = Hearing(self.phase, self.progress, self.metrics, self.rows)
        self.written()
        return taken

    def give_back(self, taken: Hearing) -> None:
        """Its transaction failed."""
        self.phase, self.progress = self.phase or taken.phase, self.progress or taken.progress
        self.metrics, self.rows = taken.metrics | self.metrics, taken.rows + self.rows


def document(event: BaseModel) -> dict[str, Any]:
    """As JSON has it: a NaN becomes null, which every database can store."""
    return json.loads(event.model_dump_json(exclude={"type"}))


def problem(said: dict[str, Any]) -> Problem:
    """The child's problem if the table has its code, else child_died with what it said."""
    code, detail, pointer = said.get("code"), said.get("detail"), said.get("pointer")
    if not isinstance(code, str) or code not in CODES or not isinstance(detail, str) or not isinstance(pointer, str | None):
        return Problem("child_died", f"it failed with a problem that is not one: {json.dumps(said)[:1000]}")
    context = {key: value for key, value in said.items() if key not in MEMBERS}
    return Problem(code, detail[:10_000], pointer=pointer, **context)
