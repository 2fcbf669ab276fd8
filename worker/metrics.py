"""What a worker tells Prometheus of itself, by a small HTTP server in a thread of its process. Prometheus's own label
`instance` says which worker it is: a worker's id, new at each start, is no label.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from app.errors import CODES
from app.jobs.states import Status
from app.jobs.table import Job
from app.settings import Settings
from worker.adaptation.events import Event, Phase, PhaseBegan, Progress

SECONDS = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
LOST = (
    *("SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "lease", "database_away", "supervisor"),
    *("disk_full", "device_unavailable", "device_failed", "worker_silent"),
)
"""Why an attempt was lost. A signal: it ended its process. lease: on waking, its worker found that the job had been taken from it.
database_away: its worker had to stop meanwhile. supervisor: that failed. disk_full: its machine had no room. device_unavailable, device_failed: its GPU.
worker_silent: counted by the worker that found the lease run out."""
EXITS = ("done", "error", "ended_by_worker", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS")
STEPS_SEEN = 16
"""Of a job's reports of progress, which come about once a second: the step rate is taken over these."""
disable_created_metrics()


class WorkerMetrics:
    """Counters begin at 0 for what may be long in coming: a series that begins with 1 is no increase to Prometheus."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.running: AttemptMeter | None = None
        self.attempts = Counter(
            "modalbridge_worker_attempts", "Attempts that ended, by how.", ["outcome", "cause"], registry=registry
        )
        for outcome, causes in {
            "succeeded": ("",),
            "handed_back": ("",),
            "cancelled": ("",),
            "failed": CODES,
            "lost": LOST,
        }.items():
            for cause in causes:
                self.attempts.labels(outcome, cause)
        self.child_exits = Counter(
            "modalbridge_worker_child_exits", "Jobs' processes that ended, by how.", ["cause"], registry=registry
        )
        for cause in EXITS:
            self.child_exits.labels(cause)
        self.phase_seconds = Histogram(
            "modalbridge_worker_phase_duration_seconds",
            "Of the phases that an attempt got through.",
            ["phase", "method"],
            registry=registry,
            buckets=SECONDS,
        )
        self.late_renewals = Counter(
            "modalbridge_worker_lease_renewals_late",
            "Leases that were renewed when more than two thirds of their time was over.",
            registry=registry,
        )
        self.wake_ups_heard = Counter(
            "modalbridge_worker_wake_ups_heard", "Messages that came from the broker.", registry=registry
        )
        self.wake_ups_sent = Counter(
            "modalbridge_worker_wake_ups_sent", "Messages sent by housekeeping.", ["outcome"], registry=registry
        )
        for outcome in ("sent", "failed"):
            self.wake_ups_sent.labels(outcome)
        self.mlflow_exports = Counter(
            "modalbridge_worker_mlflow_exports",
            "Times that MLflow was told of a job, or was to be.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("sent", "failed", "given_up"):
            self.mlflow_exports.labels(outcome)
        self.passes = Counter("modalbridge_worker_housekeeping_passes", "Passes of housekeeping.", registry=registry)
        self.failures = Counter(
            "modalbridge_worker_housekeeping_failures", "Parts of housekeeping that failed.", ["part"], registry=registry
        )
        self.violations = Gauge(
            "modalbridge_invariant_violations", "What must never be, and is: how often.", ["invariant"], registry=registry
        )
        self.busy = Gauge("modalbridge_worker_busy", "Whether it runs a job.", registry=registry)
        self.silent = Gauge(
            "modalbridge_worker_consumer_silent_seconds",
            "While it is idle: since it last heard a message, or ended a job. An idle worker hears one every half minute or so.",
            registry=registry,
        )
        self.since_pass = Gauge(
            "modalbridge_worker_housekeeping_age_seconds", "Since housekeeping last ended a pass.", registry=registry
        )
        self.disk_free = Gauge("modalbridge_worker_disk_free_bytes", "Where the scratch of its jobs lies.", registry=registry)
        self._passed_at = time.monotonic()
        self.since_pass.set_function(lambda: time.monotonic() - self._passed_at)
        steps = Gauge("modalbridge_worker_steps_per_second", "Of the job that runs, over the last seconds.", registry=registry)
        steps.set_function(lambda: self._of_running(AttemptMeter.steps_per_s))
        images = Gauge("modalbridge_worker_images_per_second", "As the job that runs last said.", registry=registry)
        images.set_function(lambda: self._of_running(lambda meter: meter.images_per_s))
        job_silent = Gauge(
            "modalbridge_worker_job_silent_seconds",
            "Since the process of the job that runs last said anything; 0 where there is none.",
            registry=registry,
        )
        job_silent.set_function(lambda: self._of_running(AttemptMeter.silent_s))

    def passed(self) -> None:
        """A pass of housekeeping is done."""
        self.passes.inc()
        self._passed_at = time.monotonic()

    def _of_running(self, read: Callable[[AttemptMeter], float]) -> float:
        meter = self.running
        return read(meter) if meter is not None else 0.0


class AttemptMeter:
    """Of one attempt, from what its process says. method: as soon as it is known."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self.metrics = metrics
        self.method = ""
        self.lost_by: str | None = None
        self.images_per_s = 0.0
        self.heard_at: float | None = None
        """Since its process began: when that, or a line of it, was last heard."""
        self._phase: Phase | None = None
        self._began_at = 0.0
        self._steps: deque[tuple[float, int]] = deque(maxlen=STEPS_SEEN)
        metrics.running = self

    def child_began(self) -> None:
        self.heard_at = time.monotonic()

    def hear(self, event: Event | None) -> None:
        self.heard_at = time.monotonic()
        match event:
            case PhaseBegan():
                self._end_phase()
                self._phase, self._began_at = event.phase, time.monotonic()
                self.metrics.phase_seconds.labels(event.phase, self.method)  # at 0 while it lasts, for the same reason
            case Progress():
                self.images_per_s = event.images_per_s or 0.0
                self._steps.append((time.monotonic(), event.step))

    def steps_per_s(self) -> float:
        """Up to now, so that it falls where a job says no more."""
        steps = list(self._steps)
        if len(steps) < 2:
            return 0.0
        (began, first), (_, last) = steps[0], steps[-1]
        return max(last - first, 0) / max(time.monotonic() - began, 1e-3)

    def silent_s(self) -> float:
        return time.monotonic() - self.heard_at if self.heard_at is not None else 0.0

    def child_ended(self, code: int, signal: str | None, *, by_worker: bool) -> None:
        """signal: what ended it, by name. by_worker: it was asked to stop, or killed, by its supervisor."""
        self.heard_at = None
        cause = "done" if code == 0 else signal or "error"
        self.metrics.child_exits.labels("ended_by_worker" if by_worker and code != 0 else cause).inc()

    def end(self, job: Job | None) -> tuple[str, str]:
        """job: as this attempt left it; None: it had lost it. (outcome, cause), as it is counted."""
        if job is not None and job.status == Status.SUCCEEDED:
            self._end_phase()
        outcome, cause = _outcome(job, self.lost_by)
        self.metrics.attempts.labels(outcome, cause).inc()
        self.metrics.running = None
        return outcome, cause

    def _end_phase(self) -> None:
        if self._phase is not None:
            self.metrics.phase_seconds.labels(self._phase, self.method).observe(time.monotonic() - self._began_at)
        self._phase, self.images_per_s = None, 0.0
        self._steps.clear()


def _outcome(job: Job | None, lost_by: str | None) -> tuple[str, str]:
    if job is None:
        return "lost", lost_by or "lease"
    if job.status == Status.CANCELLED:
        return "cancelled", ""
    if lost_by is not None:
        return "lost", lost_by
    if job.status == Status.FAILED:
        return "failed", job.error["code"]
    return ("handed_back", "") if job.status == Status.QUEUED else ("succeeded", "")


def serve(metrics: WorkerMetrics, settings: Settings) -> WSGIServer | None:
    """GET /metrics at the port of the settings; None if they name none. Raises OSError where the port cannot be had."""
    if not settings.metrics_port:
        return None
    ProcessCollector(registry=metrics.registry)
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    except OSError as error:
        raise OSError(
            error.errno,
            f"metrics at {settings.metrics_host}:{settings.metrics_port}: {error.strerror}; give each worker of a machine a "
            "MODALBRIDGE_METRICS_PORT of its own, or 0 for none",
        ) from error
    return server
