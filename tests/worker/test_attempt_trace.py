"""The spans of attempts that end otherwise than well, with OpenTelemetry's own SDK."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from app import tracing
from app.errors import Problem
from app.jobs import lifecycle
from app.jobs.lifecycle import Claim
from tests.worker.embedded import Embedded
from worker import housekeeping
from worker.adaptation.events import Failed, PhaseBegan, Progress, Started, Warned
from worker.beside import GaveUpError
from worker.draining import claim_next
from worker.tracing import AttemptTrace

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FROM_CLIENT = f"00-{TRACE}-{CLIENT}-01"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What ended, of this process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", provider.get_tracer("test"))
    return exporter


CLAIM = Claim("job_1", "tenant_1", 2, "worker_1", FROM_CLIENT)


def spans_of(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_job_that_fails_says_where_and_why(ended: InMemorySpanExporter):
    attempt = AttemptTrace(CLAIM)
    attempt.child_starts()
    started = Started(device="cuda", device_name="x" * 1000, precision="bf16", versions={}, resumed_from=("bridging", 30))
    failed = Failed(problem=Problem("too_few_images", "2 of /images?signature=s").document())
    warned = Warned(code="collapsed", message="at /images?signature=s")
    for event in (started, PhaseBegan(phase="preparing"), warned, None, failed):
        attempt.hear(event)
    attempt.child_ended(1, None, by_worker=False)
    attempt.end("failed", "too_few_images", "shot")
    found = spans_of(ended)
    assert {name: span.attributes.get("error.type") for name, span in found.items()} == {
        "start": None, "preparing": "too_few_images", "attempt": "too_few_images",
    }  # fmt: skip
    assert found["preparing"].status.status_code == found["attempt"].status.status_code == StatusCode.ERROR
    assert found["start"].status.status_code == StatusCode.UNSET
    told = found["attempt"].attributes
    assert (told["modalbridge.resumed.phase"], told["modalbridge.resumed.step"]) == ("bridging", 30)
    assert told["modalbridge.attempt"] == 2 and len(told["modalbridge.device.name"]) == 100
    assert [dict(event.attributes) for event in found["preparing"].events] == [{"modalbridge.warning": "collapsed"}]
    assert not any("signature" in span.to_json() for span in found.values())


@pytest.mark.parametrize(
    ("code", "signal", "by_worker", "expected"),
    [(-9, "SIGKILL", False, "SIGKILL"), (-9, "SIGKILL", True, None), (3, None, False, "child_died"), (0, None, False, None)],
)
def test_a_phase_ends_with_its_process(
    ended: InMemorySpanExporter, code: int, signal: str | None, by_worker: bool, expected: str | None
):
    attempt = AttemptTrace(CLAIM)
    attempt.hear(PhaseBegan(phase="bridging"))
    attempt.child_ended(code, signal, by_worker=by_worker)
    assert spans_of(ended)["bridging"].attributes.get("error.type") == expected


def test_progress_before_any_phase_and_a_problem_that_is_none_do_no_harm(ended: InMemorySpanExporter):
    attempt = AttemptTrace(CLAIM)
    attempt.hear(Progress(phase="bridging", step=1, of=2, fraction=0.1, eta_s=None))
    attempt.hear(Warned(code="w", message=""))
    attempt.hear(Failed(problem={"code": ["no", "code"]}))
    attempt.child_starts()
    attempt.child_ended(1, None, by_worker=False)
    attempt.end("failed", "child_died", "")
    found = spans_of(ended)
    assert found["start"].attributes["error.type"] == "child_died"
    assert "modalbridge.method" not in found["attempt"].attributes


@pytest.mark.parametrize(
    ("error", "expected"), [(Problem("disk_full", "s"), "disk_full"), (OSError("s"), "OSError"), (GaveUpError(), None)]
)
def test_a_part_that_fails_says_its_kind_and_no_more(ended: InMemorySpanExporter, error: Exception, expected: str | None):
    attempt = AttemptTrace(CLAIM)
    with attempt.active(), pytest.raises(type(error)), attempt.part("fetch"):
        raise error
    attempt.end("failed", "disk_full", "shot")
    fetch = spans_of(ended)["fetch"]
    assert fetch.attributes.get("error.type") == expected and fetch.events == ()
    assert (fetch.status.status_code == StatusCode.ERROR) == (expected is not None)
    assert fetch.parent.span_id == spans_of(ended)["attempt"].context.span_id


def test_what_the_client_does_not_sample_is_not_sent_and_what_was_never_traced_begins_a_trace(ended: InMemorySpanExporter):
    AttemptTrace(Claim("job_1", "tenant_1", 1, "worker_1", f"00-{TRACE}-{CLIENT}-00")).end("succeeded", "", "shot")
    assert ended.get_finished_spans() == ()
    AttemptTrace(Claim("job_1", "tenant_1", 1, "worker_1")).end("succeeded", "", "shot")
    assert [(span.name, span.parent) for span in ended.get_finished_spans()] == [("attempt", None)]


def test_attempts_of_a_job_whose_worker_died_are_in_its_trace(embedded_both: Embedded, ended: InMemorySpanExporter):
    """The dead worker's own span is lost with it; that it died, and the next attempt, are there."""
    with tracing.tracer.start_as_current_span("request", tracing.context_of(FROM_CLIENT)):
        job_id = embedded_both.submit(wake=False)
    request = spans_of(ended)["request"]
    assert request.attributes["modalbridge.job.id"] == job_id
    worker = embedded_both.process()
    first = claim_next(worker)
    with worker.db.write() as session:
        assert lifecycle.renew(session, first, lease=timedelta(seconds=-1), now=worker.db.now(session))
    housekeeping.expire_leases(worker)
    second = claim_next(worker)
    AttemptTrace(second).end("succeeded", "", "shot")
    found = spans_of(ended)
    assert found.keys() == {"request", "attempt lost", "queued", "attempt"}
    assert {span.parent.span_id for name, span in found.items() if name != "request"} == {request.context.span_id}
    assert {format(span.context.trace_id, "032x") for span in found.values()} == {TRACE}
    lost = found["attempt lost"]
    assert (lost.attributes["modalbridge.attempt"], lost.attributes["error.type"]) == (1, "worker_silent")
    assert (first.attempt, found["attempt"].attributes["modalbridge.attempt"]) == (1, 2)
    since, until = second.waited
    assert since <= until
    assert found["queued"].start_time == pytest.approx(since.timestamp() * 1e9, abs=1e3)
    assert lost.start_time == pytest.approx(found["queued"].start_time, abs=10e9), "it waits anew since it was lost"
