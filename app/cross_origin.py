"""A browser sends what it has to any address that a page names, from whatever site the page is. While there is no key, that would let
every page in the world submit a job here, from the browser of whoever reaches the service."""

from __future__ import annotations

from fastapi import Request

from app.errors import Problem

SAFE = ("GET", "HEAD", "OPTIONS")


async def own_pages_alone(request: Request) -> None:
    """A dependency of everything: what changes anything is taken from our own pages, or from what is no browser. By Sec-Fetch-Site,
    which no page can set; where a browser sends none, as to plain HTTP on another machine, by Origin, which every browser sends
    with a request that changes anything. Raises Problem cross_origin."""
    if request.method in SAFE:
        return
    site, origin, host = (request.headers.get(name) for name in ("sec-fetch-site", "origin", "host"))
    if site is not None:
        if site != "same-origin":
            raise Problem("cross_origin", f"the browser says that it was sent from another site (Sec-Fetch-Site: {site[:50]})")
    # The host alone: a proxy that ends TLS speaks plain HTTP to this service, so the schemes may differ.
    elif origin is not None and origin.partition("://")[2] != host:
        raise Problem("cross_origin", f"its Origin is {origin[:200]!r}, this service is {host!r} to the browser")
