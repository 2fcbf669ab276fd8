"""The dashboard: pages for a browser, made of what the API's routes are made of. All of it lies under /dashboard, so that a proxy
can let it through, or keep it back, as a whole; / leads there."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

from app.dashboard import compare, job, jobs, new_job, workers
from app.dashboard.pages import STATIC, problems_are_pages
from app.errors import Problem


def install(app: FastAPI) -> None:
    app.add_api_route("/", home, include_in_schema=False)
    app.mount("/dashboard/static", StaticFiles(directory=STATIC))
    pages = APIRouter(prefix="/dashboard", dependencies=[Depends(problems_are_pages)], include_in_schema=False)
    for router in (jobs.router, compare.router, new_job.router, job.router, workers.router):
        pages.include_router(router)
    pages.add_api_route("", home)
    pages.add_api_route("/{rest:path}", nothing)
    app.include_router(pages)


async def home() -> RedirectResponse:
    return RedirectResponse("/dashboard/jobs")


async def nothing(request: Request) -> None:
    raise Problem("not_found", f"there is no page {request.url.path[:200]}")
