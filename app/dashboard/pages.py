"""How a page is made: its template, the headers that it goes out with, and the page that shows a problem."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.dashboard import formats
from app.dashboard.results import MODELS, VERDICTS, number, verdict

STATIC = Path(__file__).parent / "static"
HEADERS = {
    # Scripts and styles come from our own files alone: what a client named its job can run nothing, whatever it holds.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@cache
def asset(name: str) -> str:
    """A static file's address, which changes with its content: no browser shows a page with the style of another version."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/dashboard/static/{name}?v={digest[:12]}"


environment = Environment(
    loader=PackageLoader("app.dashboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
environment.globals |= {
    "asset": asset,
    "verdicts": VERDICTS,
    "models": MODELS,
    "number": number,
    "verdict": verdict,
}
environment.filters |= {
    "figure": formats.figure,
    "share": formats.share,
    "duration": formats.duration,
    "ago": formats.ago,
    "instant": formats.instant,
    "size": formats.size,
}


def page(template: str, status_code: int = 200, headers: dict[str, str] | None = None, **context: Any) -> Response:
    """Every value is escaped; one that the template names and the context lacks is an error."""
    html = environment.get_template(template).render(now=datetime.now(UTC), **context)
    return HTMLResponse(html, status_code, headers=HEADERS | (headers or {}))


def show_problem(request: Request, document: dict[str, Any], headers: dict[str, str] | None) -> Response:
    return page("problem.html", document["status"], headers, problem=document)


async def problems_are_pages(request: Request) -> None:
    """A dependency: what goes wrong on a page is told by one, too (see app.problems.respond)."""
    request.state.show_problem = show_problem
