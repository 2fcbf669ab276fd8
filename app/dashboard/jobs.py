"""The page of all jobs: filters and place in the list are in its address, and its rows come again while one of them may change."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response

from app.dashboard.pages import page
from app.errors import Problem
from app.jobs import queries, service
from app.jobs.schemas import JobView
from app.jobs.states import TERMINAL, Status
from app.pagination import id_cursor
from app.tenancy import Tenant

router = APIRouter()
ROWS = 50
"""Of one page."""
ADDRESS = "/dashboard/jobs"


@router.get("/jobs")
def all_jobs(
    request: Request,
    tenant: Tenant,
    status: Annotated[list[Status], Query()] = [],  # noqa: B006 - FastAPI copies it
    label: Annotated[list[str], Query()] = [],  # noqa: B006
    after: str | None = None,
    job: Annotated[list[str], Query(description="Those that are ticked.")] = [],  # noqa: B006
    hx_request: Annotated[str | None, Header()] = None,
) -> Response:
    """The page; to HTMX, its rows alone."""
    labels = [text.strip() for text in label if text.strip()]
    fault, found = None, []
    try:
        wanted = service.labels_of(labels)
        with request.app.state.db.read() as session:
            found = queries.newest(session, tenant, status=status, labels=wanted, after=id_cursor(after, "job"), limit=ROWS + 1)
    except Problem as problem:
        if problem.pointer != "/label":
            raise
        fault = problem.detail
    jobs = [JobView.of(one) for one in found[:ROWS]]
    filters = [("status", str(one)) for one in status] + [("label", text) for text in labels]
    return page(
        "rows.html" if hx_request else "jobs.html",
        422 if fault else 200,
        jobs=jobs,
        ticked=set(job),
        statuses=list(Status),
        chosen=status,
        labels=labels,
        fault=fault,
        first=after is None,
        here=_address(filters, after),
        newest=_address(filters, None),
        older=_address(filters, jobs[-1].id) if len(found) > ROWS else None,
        live=any(one.status not in TERMINAL for one in jobs),
    )


def _address(filters: list[tuple[str, str]], after: str | None) -> str:
    query = urlencode(filters + ([("after", after)] if after is not None else []))
    return f"{ADDRESS}?{query}" if query else ADDRESS
