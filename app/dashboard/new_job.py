"""The page that submits a job from a browser: what POST /jobs takes, with what is wrong told at the field that it is of."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from app import broker, threads, uploads
from app.dashboard import form
from app.dashboard.jobs import ADDRESS
from app.dashboard.pages import page
from app.errors import Problem
from app.ids import new_id
from app.jobs import service
from app.problems import parse
from app.source_models import queries as source_models
from app.spec import JobRequest
from app.tenancy import Tenant

router = APIRouter(prefix="/jobs/new")
OFFERED = 100
"""The newest source models, to choose from."""


@router.get("")
def new_job(request: Request, tenant: Tenant, like: str | None = None) -> Response:
    """like: a job that the form is to begin with."""
    texts = form.defaults()
    if like is not None:
        texts = form.texts_of(service.read(request.app.state.db, tenant, like).request)
    return _page(request, tenant, texts)


@router.post("")
async def submit(request: Request, tenant: Tenant) -> Response:
    """To the new job's page; or the form again, as it was filled in, with what is wrong."""
    state = request.app.state
    received = await uploads.receive(request, texts=form.TEXTS, file_part=form.FILE, blobs=state.blobs, settings=state.settings)
    with received:
        texts = {name: text.decode("utf-8", "replace").replace("\r\n", "\n") for name, text in received.texts.items()}
        wanted, faults = form.request_of(texts)
        staged = received.staged if received.staged is not None and received.staged.size else None  # none was chosen
        try:
            key = _key(texts)
            if faults:
                raise Problem("invalid_request", faults[0][1], errors=[{"pointer": at, "detail": what} for at, what in faults])
            asked = await run_in_threadpool(parse, JobRequest, json.dumps(wanted).encode())
            job, new = await threads.check(
                request, service.submit, state.db, state.blobs, state.settings, tenant, asked, staged, key
            )  # fmt: skip
        except Problem as problem:
            if problem.kind.status >= 500:
                raise
            return await run_in_threadpool(_page, request, tenant, form.defaults() | texts, problem)
    if new:
        await run_in_threadpool(broker.wake, state.celery, job.id, job.needs_cuda)
    return RedirectResponse(f"{ADDRESS}/{job.id}", 303)


def _key(texts: Mapping[str, str]) -> str | None:
    """As POST /jobs takes it: whoever sends the form without the page may send anything. Raises Problem invalid_request."""
    key = texts.get(form.KEY) or None
    if key is not None and (len(key) > service.LONGEST_KEY or "\0" in key):
        raise Problem(
            "invalid_request", f"`{form.KEY}` is to have at most {service.LONGEST_KEY} characters and no null character"
        )
    return key


def _page(request: Request, tenant: str, texts: Mapping[str, str], problem: Problem | None = None) -> Response:
    state = request.app.state
    # Neither PostgreSQL, which is asked for the model, nor HTML takes a null character.
    texts = {name: text.replace("\0", "\N{REPLACEMENT CHARACTER}") for name, text in texts.items()}
    with state.db.read() as session:
        models = source_models.newest(session, tenant, after=None, limit=OFFERED)
        named = texts.get("model", "")
        if named and named not in [model.id for model in models] and (older := source_models.by_id(session, tenant, named)):
            models = [*models, older]
    faults = []
    if problem is not None:
        listed = problem.context.get("errors") or [{"pointer": problem.pointer or "", "detail": problem.detail}]
        faults = [(one["pointer"] or "", one["detail"]) for one in listed]
    return page(
        "new_job.html",
        problem.kind.status if problem is not None else 200,
        groups=form.GROUPS,
        rest=form.REST,
        fields={field.name: field for field in (*form.FIELDS, form.REST)},
        texts=texts,
        key=new_id("form"),
        problem=problem,
        faults=form.placed(faults, texts),
        models=models,
        roots=[str(root) for root in state.settings.data_roots],
    )
