"""What a worker tells Prometheus: of attempts by hand, and of a real worker over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from wsgiref.simple_server import WSGIServer

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.database import EMBEDDED_TENANT
from app.errors import Problem
from app.jobs import lifecycle, service
from app.jobs.table import Job
from app.settings import Settings
from demo.processes import free_port
from tests.worker.embedded import ENDLESS, Embedded, child_of, wait_for
from worker import housekeeping, metrics
from worker.adaptation.events import PhaseBegan, Progress
from worker.draining import claim_next
from worker.metrics import AttemptMeter, WorkerMetrics


def scrape(port: int) -> dict[str, float]:
    """`name{label="value",...}`, without the prefix that all share -> value."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).raise_for_status().text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix("modalbridge_worker_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def has_begun(port: int) -> bool:
    """It listens, and its first pass of housekeeping is done."""
    try:
        return scrape(port)["housekeeping_passes_total"] > 0
    except httpx.ConnectError:
        return False


def value(of: WorkerMetrics, name: str, **labels: str) -> float | None:
    return of.registry.get_sample_value(f"modalbridge_worker_{name}", labels)


def attempts(of: WorkerMetrics) -> dict[tuple[str, str], float]:
    (family,) = of.attempts.collect()
    return {(s.labels["outcome"], s.labels["cause"]): s.value for s in family.samples if s.value}


def test_an_attempt_counts_by_how_its_job_is_left(embedded_both: Embedded):
    worker = embedded_both.process()

    def end(how: str) -> Job | None:
        embedded_both.submit(wake=False)
        claim = claim_next(worker)
        meter = AttemptMeter(worker.metrics)
        with worker.db.write() as session:
            now = worker.db.now(session)
            if how == "succeed":
                job = lifecycle.succeed(session, claim, result={}, artifacts=[], now=now)
            elif how == "fail":
                job = lifecycle.fail(session, claim, Problem("time_limit", "too long").document(), now=now)
            elif how == "hand back":
                job = lifecycle.hand_back(session, claim, now=now)
            elif how == "cancel":
                lifecycle.cancel(session, EMBEDDED_TENANT, claim.job_id, now=now)
                job = lifecycle.finish_cancel(session, claim, now=now)
            elif how == "taken away":
                job = None
            else:
                meter.lost_by = how
                most = 1 if how == "SIGSEGV" else 3
                job = lifecycle.lose(session, claim, how, most=most, backoff=timedelta(0), now=now)
        meter.end(job)
        with worker.db.write() as session:  # what is queued again must not be claimed by the next
            lifecycle.cancel(session, EMBEDDED_TENANT, claim.job_id, now=now)
        return job

    for how in ("succeed", "fail", "hand back", "cancel", "taken away", "SIGKILL", "SIGSEGV"):
        end(how)
    assert attempts(worker.metrics) == {
        ("succeeded", ""): 1,
        ("failed", "time_limit"): 1,
        ("handed_back", ""): 1,
        ("cancelled", ""): 1,
        ("lost", "lease"): 1,
        ("lost", "SIGKILL"): 1,
        ("lost", "SIGSEGV"): 1,  # the last that it may lose: the job failed, and why is the signal
    }


def test_a_silent_workers_attempt_is_counted_by_the_one_that_takes_it_back(embedded_both: Embedded):
    embedded_both.submit(wake=False)
    claim_next(embedded_both.process(lease_s=0.001))
    time.sleep(0.01)
    other = embedded_both.process()
    housekeeping.expire_leases(other)
    assert attempts(other.metrics) == {("lost", "worker_silent"): 1}


def test_phases_count_when_they_are_got_through_and_rates_end_with_the_job():
    of = WorkerMetrics()
    meter = AttemptMeter(of)
    meter.method = "tgmb_tgkt"

    def progress(step: int) -> None:
        meter.hear(Progress(phase="bridging", step=step, of=100, fraction=0.1, eta_s=None, images_per_s=40.0))

    meter.hear(None)
    meter.hear(PhaseBegan(phase="preparing"))
    meter.hear(PhaseBegan(phase="bridging"))
    began = time.monotonic()
    progress(10)
    assert value(of, "steps_per_second") == 0, "one report is no rate"
    time.sleep(0.05)
    progress(20)
    rate = value(of, "steps_per_second")
    assert 10 / (time.monotonic() - began) - 1 < rate <= 10 / 0.05
    time.sleep(0.1)
    assert value(of, "steps_per_second") < rate, "it falls while nothing more is heard"
    assert value(of, "images_per_second") == 40
    meter.end(None)
    assert value(of, "steps_per_second") == value(of, "images_per_second") == 0
    seen = {
        phase: value(of, "phase_duration_seconds_count", phase=phase, method="tgmb_tgkt") for phase in ("preparing", "bridging")
    }
    assert seen == {"preparing": 1, "bridging": 0}, "it did not get through the second"


@pytest.mark.parametrize(
    ("code", "signal", "by_worker", "cause"),
    [
        (0, None, False, "done"),
        (0, None, True, "done"),
        (1, None, False, "error"),
        (-9, "SIGKILL", False, "SIGKILL"),
        (-9, "SIGKILL", True, "ended_by_worker"),
    ],
)
def test_a_process_counts_by_what_ended_it(code: int, signal: str | None, by_worker: bool, cause: str):
    of = WorkerMetrics()
    AttemptMeter(of).child_ended(code, signal, by_worker=by_worker)
    assert value(of, "child_exits_total", cause=cause) == 1


@pytest.fixture
def port() -> int:
    return free_port()


def test_a_port_that_is_taken_is_said_with_what_to_do(port: int):
    settings = Settings(metrics_port=port)
    assert metrics.serve(WorkerMetrics(), Settings()) is None
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(OSError, match=f"127.0.0.1:{port}.*in use.*MODALBRIDGE_METRICS_PORT of its own"):
            metrics.serve(WorkerMetrics(), settings)


@contextmanager
def served(of: WorkerMetrics, port: int) -> Iterator[None]:
    server = metrics.serve(of, Settings(metrics_port=port))
    assert isinstance(server, WSGIServer)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def test_it_is_served_over_http(port: int):
    of = WorkerMetrics()
    with served(of, port):
        of.passed()
        samples = scrape(port)
    assert samples["housekeeping_passes_total"] == 1
    assert samples["attempts_total{cause=,outcome=succeeded}"] == 0, "from the start, so that the first is an increase"
    assert samples["process_open_fds"] > 0
    assert not [name for name in samples if "worker_id" in name]


def test_an_idle_worker_that_has_heard_nothing_knocks_now_and_then(embedded: Embedded):
    def messages() -> int:
        return len(list((embedded.settings.broker_dir / "messages").glob("*.msg")))

    worker = embedded.process()
    housekeeping.knock(worker)
    assert messages() == 0, "it has only just begun"
    long_ago = time.monotonic() - housekeeping.KNOCK_S - 1
    worker.heard_at = worker.knocked_at = long_ago
    assert value(worker.metrics, "consumer_silent_seconds") > housekeeping.KNOCK_S
    worker.job_id = "job_x"
    housekeeping.knock(worker)
    assert messages() == 0, "one that is busy hears nothing, and need not"
    assert (value(worker.metrics, "consumer_silent_seconds"), value(worker.metrics, "busy")) == (0, 1)
    worker.job_id = None
    housekeeping.knock(worker)
    housekeeping.knock(worker)
    assert messages() == 1
    assert value(worker.metrics, "wake_ups_sent_total", outcome="sent") == 1


@pytest.mark.acceptance
def test_a_real_worker_tells_what_it_does(embedded: Embedded, port: int):
    with embedded.worker(metrics_port=port):
        wait_for(lambda: has_begun(port), "the first pass")
        idle = scrape(port)
        assert (idle["busy"], idle["steps_per_second"]) == (0, 0)
        assert idle["modalbridge_invariant_violations{invariant=worker_with_two_jobs}"] == 0
        assert idle["housekeeping_failures_total{part=heartbeat}"] == 0, "from the start, so that the first is an increase"
        embedded.wake("none")
        wait_for(lambda: scrape(port)["wake_ups_heard_total"] == 1, "the message")
        assert scrape(port)["consumer_silent_seconds"] < 5
        job_id = embedded.submit(**ENDLESS)
        embedded.until_event(job_id, "phase", words="bridging")
        wait_for(lambda: scrape(port)["steps_per_second"] > 0, "the first steps")
        running = scrape(port)
        assert (running["busy"], running["consumer_silent_seconds"]) == (1, 0)
        engine = child_of(embedded, job_id, 1)
        os.kill(engine, signal.SIGSTOP)  # it hangs, as in a driver
        wait_for(lambda: scrape(port)["job_silent_seconds"] > 3, "the silence")
        os.kill(engine, signal.SIGCONT)
        wait_for(lambda: scrape(port)["job_silent_seconds"] < 2, "a word of it")
        assert running["phase_duration_seconds_count{method=tgmb_tgkt,phase=preparing}"] == 1
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
        embedded.until(job_id, "cancelled")
        wait_for(lambda: scrape(port)["busy"] == 0, "the end of the job")
        over = scrape(port)
        assert over["attempts_total{cause=,outcome=cancelled}"] == 1
        assert over["child_exits_total{cause=done}"] == 1
        assert (over["steps_per_second"], over["images_per_second"], over["lease_renewals_late_total"]) == (0, 0, 0)
        assert over["job_silent_seconds"] == 0


@pytest.mark.acceptance
def test_a_worker_that_lives_and_does_not_consume_is_seen(embedded: Embedded, port: int):
    """Deaf in truth: it listens to a queue into which nobody speaks."""
    with embedded.worker(queues="another", metrics_port=port):
        wait_for(lambda: has_begun(port), "the first pass")
        embedded.wake("none")
        began, early = time.monotonic(), scrape(port)
        time.sleep(1.5)
        late, passed = scrape(port), time.monotonic() - began
        assert late["housekeeping_passes_total"] > early["housekeeping_passes_total"], "it looks alive"
        assert late["wake_ups_heard_total"] == 0
        grown = late["consumer_silent_seconds"] - early["consumer_silent_seconds"]
        assert grown == pytest.approx(passed, abs=1)
