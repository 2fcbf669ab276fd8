"""Archives from https hosts that the operator has opened: looked at before a job is accepted, then downloaded as they were.

No proxy, no cookies, no credentials, no redirect that is not looked at as the first address was.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

import certifi
import httpcore

from app.addresses import CheckedBackend, ForbiddenAddressError
from app.errors import Problem
from app.remote import Pin, Remote, parse
from app.settings import Settings

MOST_HOPS = 5
CONNECT_S, READ_S = 10.0, 30.0
"""Silence included, for each read."""
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "modalbridge"}
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


@dataclass(frozen=True)
class Answer:
    """start: of the bytes that it has. total: of the whole archive, where it says so. validator: what to name to get bytes of
    the same again; empty: it gives none. version: the same, told."""

    stream: Iterator[bytes]
    start: int
    total: int | None
    validator: str
    version: str


class Downloads:
    def __init__(self, settings: Settings, backend: httpcore.NetworkBackend | None = None) -> None:
        self.hosts = frozenset(settings.data_hosts)
        self.most = settings.max_dataset_bytes
        self._ca_file = settings.data_ca_file
        self._backend = backend or CheckedBackend([one.partition(":")[0] for one in settings.data_private_hosts])

    def look(self, led: Remote, pointer: str) -> Pin:
        """Asks for the first byte. Raises Problem reference_forbidden, reference_missing, reference_unreadable, reference_away,
        reference_too_large."""
        with self.ask(led, 0, "", pointer, last=0) as answer:
            return Pin(uri=led.base, version=answer.version, size=answer.total)

    @contextmanager
    def ask(self, led: Remote, start: int, validator: str, pointer: str, last: int | None = None) -> Iterator[Answer]:
        """The bytes from `start` on if what is there still has the validator, else all of it. last: the last one wanted."""
        headers = dict(_HEADERS)
        if start or last is not None:
            headers["Range"] = f"bytes={start}-{'' if last is None else last}"
        if start:
            headers["If-Range"] = validator
        with httpcore.ConnectionPool(self._tls(), network_backend=self._backend, max_connections=1) as pool:
            hop = led
            for _ in range(MOST_HOPS + 1):
                self._require_open(hop, pointer)
                with self._told(hop, pointer), self._get(pool, hop, headers) as response:
                    if (target := self._redirect(response, hop, pointer)) is None:
                        yield self._answer(response, start, led, pointer)
                        return
                hop = target
        raise Problem("reference_unreadable", f"{led.shown} leads through more than {MOST_HOPS} redirects", pointer=pointer)

    @contextmanager
    def _get(self, pool: httpcore.ConnectionPool, hop: Remote, headers: dict[str, str]) -> Iterator[httpcore.Response]:
        timeout = {"connect": CONNECT_S, "read": READ_S, "write": READ_S, "pool": CONNECT_S}
        with pool.stream("GET", hop.base, headers=headers, extensions={"timeout": timeout}) as response:
            yield response

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=certifi.where())
        if self._ca_file:
            context.load_verify_locations(self._ca_file)
        return context

    def _require_open(self, hop: Remote, pointer: str) -> None:
        if hop.place not in self.hosts:
            raise Problem("reference_forbidden", f"{hop.place} is not among the hosts that may be asked", pointer=pointer)

    def _redirect(self, response: httpcore.Response, hop: Remote, pointer: str) -> Remote | None:
        if response.status not in (301, 302, 303, 307, 308):
            return None
        location = _header(response, "location").partition("#")[0]
        try:
            target = urljoin(hop.base, location)
        except ValueError as error:
            raise Problem(
                "reference_unreadable", f"{hop.shown} leads on to {_bare(location)!r}: {error}", pointer=pointer
            ) from error
        if not target.lower().startswith("https://"):
            raise Problem(
                "reference_forbidden", f"{hop.shown} leads on to {_bare(target)!r}, which is not https", pointer=pointer
            )
        return parse(target, pointer, hop=True)

    def _answer(self, response: httpcore.Response, start: int, led: Remote, pointer: str) -> Answer:
        status = response.status
        if status in (404, 410):
            raise Problem("reference_missing", f"{led.shown} is not there ({status})", pointer=pointer)
        if status == 429 or status >= 500:
            raise Problem("reference_away", f"{led.shown} answers {status}", pointer=pointer)
        if status == 416:
            raise Problem("empty_file", f"{led.shown} has no byte {start}", pointer=pointer)
        if status not in (200, 206):
            raise Problem("reference_unreadable", f"{led.shown} answers {status}", pointer=pointer)
        length, etag, modified = (_header(response, name) for name in ("content-length", "etag", "last-modified"))
        found, total = 0, int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        if status == 206:
            if (part := _RANGE.fullmatch(_header(response, "content-range"))) is None or int(part[1]) != start:
                raise Problem("reference_unreadable", f"{led.shown} answers with a range that was not asked for", pointer=pointer)
            found, total = start, int(part[3])
        if total is not None and total > self.most:
            raise Problem(
                "reference_too_large", f"{led.shown} has {total} bytes; at most {self.most} are fetched", pointer=pointer
            )
        strong = etag if etag and not etag.startswith("W/") else ""
        version = f"etag:{strong}" if strong else f"modified:{modified}" if modified else ""
        return Answer(response.iter_stream(), found, total, strong or modified, version[:200])

    @contextmanager
    def _told(self, hop: Remote, pointer: str) -> Iterator[None]:
        try:
            yield
        except ForbiddenAddressError as error:
            raise Problem("reference_forbidden", str(error), pointer=pointer) from error
        except _BROKEN as error:
            if isinstance(cause := error.__context__, ssl.SSLCertVerificationError):
                raise Problem("reference_unreadable", f"{hop.place}: {cause.verify_message}", pointer=pointer) from error
            detail = f"{hop.place} does not answer: {type(error).__name__}: {str(error)[:200]}"
            raise Problem("reference_away", detail, pointer=pointer) from error


def _bare(location: str) -> str:
    return location.partition("?")[0][:200]


def _header(response: httpcore.Response, name: str) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.decode("latin-1").lower() == name), "")
