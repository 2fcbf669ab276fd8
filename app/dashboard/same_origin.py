"""A browser sends what it has to any address that a page names, from whatever site the page is. So a form is taken only
from our own pages."""

from __future__ import annotations

from fastapi import Request

from app.errors import Problem


async def same_origin(request: Request) -> None:
    """A dependency. By Sec-Fetch-Site, which no page can set; where a browser sends none, as to plain HTTP on another machine, by
    Origin, which every browser sends with a form. Raises Problem cross_origin."""
    site, origin, host = (request.headers.get(name) for name in ("sec-fetch-site", "origin", "host"))
    if site is not None:
        if site != "same-origin":
            raise Problem("cross_origin", f"the browser says that it was sent from another site (Sec-Fetch-Site: {site[:50]})")
    # The host alone: a proxy that ends TLS speaks plain HTTP to this service, so the schemes may differ.
    elif origin is None or origin.partition("://")[2] != host:
        raise Problem("cross_origin", f"its Origin is {(origin or 'missing')[:200]!r}, this service is {host!r} to the browser")
