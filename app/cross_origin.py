"""A browser sends what it has to any address that a page names, from whatever site the page is. While there is no key, that would let
every page in the world submit a job here, from the browser of whoever reaches the service. And whoever has a domain can make a
name of it lead here (DNS rebinding): to the browser, their page and this service are one site then, which reads everything."""

from __future__ import annotations

import ipaddress
import re

from fastapi import Request

from app.errors import Problem

SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:[0-9]*)?")
ANY = "*"


async def own_names_alone(request: Request) -> None:
    """A dependency of everything, whatever the method: the name by which it was called is one that nobody else can have. Raises
    Problem unknown_host."""
    host = request.headers.get("host")
    if host and not _is_ours(host, request.app.state.settings.hosts):
        raise Problem("unknown_host", f"{host[:200]!r} is not among the names of this service that MODALBRIDGE_HOSTS holds")


def _is_ours(host: str, named: tuple[str, ...]) -> bool:
    """An address; a name of one label, as containers and machines of a local network have, since no public name is one; localhost and
    what is below it, which every browser takes for itself; and what the operator names."""
    if ANY in named:
        return True
    if (found := _HOST.fullmatch(host)) is None:
        return False
    name = found[1].lower().removesuffix(".")
    return "." not in name or name.endswith(".localhost") or name in named or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


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
