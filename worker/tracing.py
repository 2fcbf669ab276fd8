"""One attempt as a span of its job's trace, and below it what it consists of. The job's process has no network and knows nothing of
traces: its phases are spans by what its supervisor hears of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from app import tracing
from app.errors import Problem
from app.jobs.lifecycle import Claim
from app.jobs.table import Job
from worker.adaptation.events import Event, Failed, PhaseBegan, Progress, Started, Warned
from worker.beside import GaveUpError
from worker.hearing import problem


class AttemptTrace:
    """Begins with the attempt."""

    def __init__(self, claim: Claim) -> None:
        self.ids: dict[str, AttributeValue] = {"modalbridge.job.id": claim.job_id, "modalbridge.attempt": claim.attempt}
        parent = tracing.context_of(claim.traceparent)
        if claim.traceparent is not None and claim.waited is not None:
            since, until = map(_nanoseconds, claim.waited)
            tracing.tracer.start_span("queued", parent, attributes=self.ids, start_time=since).end(until)
        worker = {"modalbridge.worker.id": claim.worker_id}
        self._span = tracing.tracer.start_span("attempt", parent, SpanKind.CONSUMER, self.ids | worker)
        self._inside = trace.set_span_in_context(self._span, parent)
        self._step: Span | None = None
        self._error: str | None = None

    def active(self) -> AbstractContextManager[Span]:
        """What is logged meanwhile names the attempt's span."""
        return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Of the attempt, done by this process."""
        with tracing.part(name, **self.ids) as span:
            try:
                yield
            except GaveUpError:
                raise  # the job is to stop or another's: nothing failed
            except Problem as error:
                tracing.failed(span, error.code)
                raise
            except Exception as error:
                tracing.failed(span, type(error).__name__)
                raise

    def child_starts(self) -> None:
        self._begin("start")

    def hear(self, event: Event | None) -> None:
        match event:
            case Started():
                device = {"modalbridge.device": event.device, "modalbridge.device.name": event.device_name[:100]}
                self._span.set_attributes(device | {"modalbridge.precision": event.precision})
                if event.resumed_from is not None:
                    phase, step = event.resumed_from
                    self._span.set_attributes({"modalbridge.resumed.phase": phase, "modalbridge.resumed.step": step})
            case PhaseBegan():
                self._begin(event.phase)
            case Progress() if self._step is not None:
                told = {"modalbridge.step": event.step, "modalbridge.steps": event.of}
                if event.images_per_s is not None:
                    told["modalbridge.images_per_second"] = event.images_per_s
                self._step.set_attributes(told)
            case Warned():
                (self._step or self._span).add_event("warning", {"modalbridge.warning": event.code[:100]})
            case Failed():
                self._error = problem(event.problem).code

    def child_ended(self, code: int, signal: str | None, *, by_worker: bool) -> None:
        """As AttemptMeter has it."""
        if self._step is not None and code != 0 and not by_worker:
            tracing.failed(self._step, self._error or signal or "child_died")
        self._end_step()

    def end(self, outcome: str, cause: str, method: str) -> None:
        """outcome, cause: as they are counted."""
        self._end_step()
        self._span.set_attributes({"modalbridge.outcome": outcome} | ({"modalbridge.method": method} if method else {}))
        if cause:
            tracing.failed(self._span, cause)
        self._span.end()

    def _begin(self, name: str) -> None:
        self._end_step()
        self._step = tracing.tracer.start_span(name, self._inside, attributes=self.ids)

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.end()
            self._step = None


def fell_silent(job: Job) -> None:
    """An attempt whose worker is gone, and its span with it: an instant of the trace says so, from the worker that found it."""
    if job.traceparent is not None:
        ids = {"modalbridge.job.id": job.id, "modalbridge.attempt": job.attempt}
        span = tracing.tracer.start_span("attempt lost", tracing.context_of(job.traceparent), attributes=ids)
        tracing.failed(span, "worker_silent")
        span.end()


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
