"""GET /metrics of the front end: its answers, counted as they begin, and what SQL says of jobs and workers, asked at each
scrape. No label holds anything that a client chooses: routes are templates, methods and states are known ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import sqlalchemy as sa
import structlog
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.database import Tenant
from app.jobs import queries
from app.jobs.states import Status
from app.probes import Question

LIMIT_S = 5.0
"""For the database, of the ten seconds that Prometheus gives a scrape by default."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
log = structlog.get_logger()
router = APIRouter(tags=["health"])
disable_created_metrics()  # a series beside each counter with the time of its first count: nothing here asks for it


class Metrics:
    """Of one front end, in a registry of its own."""

    def __init__(self, state: State) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "modalbridge_http_requests",
            "Requests answered, by route template, method and class of status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "modalbridge_http_request_duration_seconds",
            "From the request's headers to the first byte of its answer, an upload's body included.",
            ["route", "method"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.registry.register(Stored(state))


class Counted:
    """Counts each request when its answer begins: a stream or a download may go on for minutes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, counted = time.perf_counter(), False

        def count(status: int) -> None:
            nonlocal counted
            counted = True
            route, method = route_of(scope), scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(route, method, "5xx")  # at 0: to Prometheus a series that begins with 1 is no increase
            self.metrics.requests.labels(route, method, f"{status // 100}xx").inc()
            self.metrics.seconds.labels(route, method).observe(time.perf_counter() - began)

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_count)
        except Exception:
            if not counted:
                count(500)  # what the server makes of it, further out
            raise


def route_of(scope: Scope) -> str:
    """The template that took the request, or `other`: static files and addresses that do not exist. Polls that ask to be held
    are a route apart: how long those take is what the client wanted."""
    route = getattr(scope.get("route"), "path", None)
    if route is None:
        return "other"
    return f"{route}?wait" if b"wait=" in scope["query_string"] else route


@dataclass(frozen=True)
class Counts:
    jobs: dict[str, int]
    waited_s: float
    workers: dict[str, int]
    stored_bytes: int
    most_bytes: int


class Stored:
    """What SQL says."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._question = Question(self._counts, "metrics")

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return families(None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            counts = self._question.put().result(LIMIT_S)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the database is what the gauge tells
            log.warning("metrics: the database did not answer", error=f"{type(error).__name__}: {error}"[:300])
            counts = None
        return families(counts)

    def _counts(self) -> Counts:
        with self.state.db.read() as session:
            now = self.state.db.now(session)
            since = queries.waiting_since(session)
            workers = queries.workers_seen_since(session, now - timedelta(seconds=self.state.settings.worker_silent_s))
            busy = sum(worker.job_id is not None for worker in workers)
            return Counts(
                jobs=queries.by_status(session),
                waited_s=max((now - since).total_seconds(), 0.0) if since else 0.0,
                workers={"busy": busy, "idle": len(workers) - busy},
                stored_bytes=session.scalar(sa.select(sa.func.coalesce(sa.func.max(Tenant.stored_bytes), 0))),
                most_bytes=self.state.settings.storage_bytes,
            )


def families(counts: Counts | None) -> Iterator[GaugeMetricFamily]:
    """None: the database is away, and nothing is said but that."""
    yield GaugeMetricFamily("modalbridge_database_up", "Whether the database answered this scrape.", float(counts is not None))
    jobs = GaugeMetricFamily("modalbridge_jobs", "Jobs by status; `queued` is the queue's depth.", labels=["status"])
    waited = GaugeMetricFamily(
        "modalbridge_oldest_queued_job_age_seconds",
        "How long the job has waited that was queued, or queued again, first; 0 if none is.",
    )
    workers = GaugeMetricFamily("modalbridge_workers", "Workers that were heard from, busy or idle.", labels=["state"])
    stored = GaugeMetricFamily(
        "modalbridge_stored_bytes", "Source models, datasets and artifacts in the blob store, of the tenant that has most."
    )
    most = GaugeMetricFamily("modalbridge_stored_bytes_limit", "What a tenant may have there; +Inf if there is no limit.")
    if counts is not None:
        stored.add_metric([], counts.stored_bytes)
        most.add_metric([], counts.most_bytes or float("inf"))
        for status in Status:
            jobs.add_metric([status], counts.jobs.get(status, 0))
        waited.add_metric([], counts.waited_s)
        for state, number in counts.workers.items():
            workers.add_metric([state], number)
    yield from (jobs, waited, workers, stored, most)


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, accept: Annotated[str, Header()] = "") -> Response:
    """In Prometheus's text format, or OpenMetrics where `Accept` asks for it. 200 also while the database is away: then
    `modalbridge_database_up` is 0 and what only the database knows is left out."""
    encode, media_type = choose_encoder(accept)
    state: Any = request.app.state
    return Response(await state.probes.tell(lambda: encode(state.metrics.registry)), media_type=media_type)
