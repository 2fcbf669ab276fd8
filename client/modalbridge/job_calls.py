"""The calls about jobs, as flows of steps. `made` turns a job's document into what the client hands out."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from modalbridge.errors import JobCancelled, JobFailed, Timeout
from modalbridge.requests import JobRequest, as_document
from modalbridge.results import Artifact, JobState, MetricPoint
from modalbridge.retries import Retries, answered
from modalbridge.steps import Answer, Emit, Request, Sleep, Steps, Tell, Upload

J = TypeVar("J", bound=JobState)
Made = Callable[[Mapping[str, Any]], J]
HELD_S = 30
"""Of a poll that waits for a change. The service may hold for less."""
OUTAGE_ATTEMPTS = 15
"""Of one poll while waiting: with the default pauses, well over a minute in which the service may be away."""
_MODEL_ID = re.compile(r"model_[0-9a-z]{26}")


def address(job: str | JobState, *below: str) -> str:
    return "/".join(["/jobs", *(quote(part, safe="") for part in (job if isinstance(job, str) else job.id, *below))])


def fits_a_header(text: str) -> bool:
    return text.isascii() and text.isprintable()


def submit(
    made: Made[J],
    retries: Retries,
    request: JobRequest | Mapping[str, Any],
    source_model: str | Path | None,
    idempotency_key: str | None,
) -> Steps[J]:
    if idempotency_key is not None and not fits_a_header(idempotency_key):
        raise ValueError(f"the idempotency key {idempotency_key!r} is not printable ASCII, as a header has to be")
    body, upload = dict(as_document(request)), None
    if isinstance(source_model, str) and _MODEL_ID.fullmatch(source_model):
        body["source_model"] = {"id": source_model}
    elif source_model is not None:
        upload = Upload("request", "source_model", Path(source_model))
    # One key for all attempts of this call: if an answer is lost, the next attempt gets the job of the first.
    headers = {"Idempotency-Key": idempotency_key or f"modalbridge-client-{uuid.uuid4()}"}
    post = Request("POST", "/jobs", headers=headers, json=body, upload=upload, held_s=60 if upload else 0, repeatable=True)
    answer = yield from answered(post, retries)
    return made(answer.document())


def get(made: Made[J], retries: Retries, job: str | JobState) -> Steps[J]:
    answer = yield from answered(Request("GET", address(job), repeatable=True), retries)
    return made(answer.document())


def list_jobs(
    made: Made[J], retries: Retries, status: str | Iterable[str] | None, label: Mapping[str, str] | None, page_size: int
) -> Steps[None]:
    params = {
        "status": [status] if isinstance(status, str) else list(status or ()),
        "label": [f"{key}:{value}" for key, value in (label or {}).items()],
    }
    yield from each("/jobs", made, retries, params, page_size)


def each(
    path: str, made: Callable[[Mapping[str, Any]], Any], retries: Retries, params: Mapping[str, Any], page_size: int
) -> Steps[None]:
    """Emits the items of a list, each page asked for as it is needed."""
    after: str | None = ""
    while after is not None:
        rows, after = yield from page(path, retries, params, after, page_size)
        for raw in rows:
            yield Emit(made(raw))


def page(path: str, retries: Retries, params: Mapping[str, Any], after: str, size: int) -> Steps[tuple[list[Any], str | None]]:
    """One page of a list, and the cursor of the next one."""
    asked = {**params, "limit": size} | ({"after": after} if after else {})
    answer = yield from answered(Request("GET", path, params=asked, repeatable=True), retries)
    return answer.rows()


def cancel(made: Made[J], retries: Retries, job: str | JobState) -> Steps[J]:
    answer = yield from answered(Request("POST", address(job, "cancel")), retries)
    return made(answer.document())


def retry(made: Made[J], retries: Retries, job: str | JobState) -> Steps[J]:
    answer = yield from answered(Request("POST", address(job, "retry")), retries)
    return made(answer.document())


def delete(retries: Retries, job: str | JobState) -> Steps[None]:
    yield from answered(Request("DELETE", address(job)), retries)


def poll(retries: Retries, job: str | JobState, etag: str, held_s: float, until: float | None = None) -> Steps[Answer]:
    """The job once it differs from the etag; a 304 where it does not after held_s."""
    held = {"wait": f"{held_s:.3f}"} if held_s > 0 else {}
    headers = {"If-None-Match": etag} if etag else {}
    request = Request("GET", address(job), params=held, headers=headers, held_s=held_s, repeatable=True)
    return answered(request, replace(retries, attempts=max(retries.attempts, OUTAGE_ATTEMPTS)), until)


def wait(
    made: Made[J],
    retries: Retries,
    job: str | JobState,
    timeout: float | None,
    on_progress: Callable[[J], Any] | None,
) -> Steps[J]:
    until = None if timeout is None else time.monotonic() + timeout
    etag, held_s = "", 0.0
    while True:
        began = time.monotonic()
        answer = yield from poll(retries, job, etag, held_s, until)
        if answer.status != 304:
            etag = answer.headers.get("etag", "")
            now = made(answer.document())
            if on_progress is not None:
                yield Tell(on_progress, (now,))
            if now.status == "failed":
                raise JobFailed(now)
            if now.status == "cancelled":
                raise JobCancelled(now)
            if now.finished:
                return now
        if until is not None and time.monotonic() >= until:
            raise Timeout(f"{now.id} is {now.status} after {timeout:g} s, and goes on")
        if answer.status == 304 and time.monotonic() - began < 0.5:
            yield Sleep(0.5)  # something on the way answers for the service, and does not hold
        held_s = HELD_S if until is None else max(0.0, min(HELD_S, until - time.monotonic()))


def metrics(retries: Retries, job: str | JobState, series: str | None) -> Steps[list[MetricPoint]]:
    found: list[MetricPoint] = []
    params = {"series": series} if series is not None else {}
    after: str | None = ""
    while after is not None:
        rows, after = yield from page(address(job, "metrics"), retries, params, after, 10_000)
        found += map(MetricPoint.read, rows)
    return found


def artifacts(retries: Retries, job: str | JobState) -> Steps[list[Artifact]]:
    answer = yield from answered(Request("GET", address(job, "artifacts"), repeatable=True), retries)
    return [Artifact.read(raw) for raw in answer.rows()[0]]
