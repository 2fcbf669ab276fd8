"""One file of the blob store as an answer: whole, or the parts of it that `Range` asks for (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from secrets import token_hex

import structlog
from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.blobs import BlobsAwayError, Reading
from app.conditional import date_of, http_date
from app.errors import Problem

MOST_RANGES = 100
log = structlog.get_logger()
_BYTES = re.compile(r"\s*bytes\s*=(.*)", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"(\d{1,18})-(\d{0,18})|-(\d{1,18})")
Span = tuple[int, int]
"""From this byte to before that one."""


class Download(StreamingResponse):
    """Closes what it reads, however it ends. Where the store gives no more, the connection ends before Content-Length: so
    the client knows what it has, and can ask for the rest."""

    def __init__(
        self, pieces: Iterator[bytes], close: Callable[[], None], status: int, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(pieces, status, headers, media_type)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except BlobsAwayError as error:
            log.error("a download broke off", path=scope["path"], error=str(error))
        finally:
            with CancelScope(shield=True):
                await run_sync(self._close)


def answer(
    request: Request,
    read: Callable[[int, int], Reading],
    *,
    size: int,
    media_type: str,
    etag: str,
    written_at: datetime,
    headers: dict[str, str],
) -> Response:
    """read(start, end) opens the file, which is of `size` bytes. The first part is opened here, so that a store that does
    not answer can still be told. written_at: in whole seconds of UTC. Raises Problem range_not_satisfiable, and what read() raises."""
    headers = headers | {
        "ETag": etag,
        "Last-Modified": http_date(written_at),
        "Accept-Ranges": "bytes",
    }
    if request.method == "HEAD":  # of which Range asks nothing
        return Response(None, 200, headers | {"Content-Length": str(size)}, media_type)
    ranges = request.headers.get("range")
    if ranges is not None and not _still(request.headers.get("if-range"), etag, written_at):
        ranges = None
    spans = wanted(ranges, size) if ranges is not None else []
    if len(spans) > 1:
        return _several(read, spans, size, media_type, headers)
    status, (start, end) = (206, spans[0]) if spans else (200, (0, size))
    headers["Content-Length"] = str(end - start)
    if spans:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    reading = read(start, end)
    return Download(iter(reading), reading.close, status, headers, media_type)


def wanted(header: str, size: int) -> list[Span]:
    """The spans that a Range header names, in order and merged where they meet; what lies outside the file is left out. Empty: the
    whole file is the answer, since the header is of another unit than bytes, or of too many parts. Raises Problem
    range_not_satisfiable where no part is within the file, or one is no range."""
    named = _BYTES.fullmatch(header)
    parts = [part.strip() for part in named[1].split(",")] if named else []
    if not named or len(parts) > MOST_RANGES:
        return []
    spans = [_span(part, header, size) for part in parts if part]
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    if not merged:
        raise _outside(header, size)
    return merged


def _span(part: str, header: str, size: int) -> Span:
    """Empty where it lies outside the file."""
    found = _RANGE.fullmatch(part)
    if not found or (found[2] and int(found[1]) > int(found[2])):
        raise _outside(header, size)
    if found[1] is None:
        return max(0, size - int(found[3])), size
    return int(found[1]), min(size, int(found[2]) + 1) if found[2] else size


def _outside(header: str, size: int) -> Problem:
    return Problem("range_not_satisfiable", f"{header[:100]!r} of a file of {size} bytes", size=size)


def _still(if_range: str | None, etag: str, written_at: datetime) -> bool:
    """Whether the client's part is of this very file."""
    return if_range is None or if_range == etag or date_of(if_range) == written_at


def _several(
    read: Callable[[int, int], Reading], spans: list[Span], size: int, media_type: str, headers: dict[str, str]
) -> Response:
    boundary = token_hex(16)
    heads = [
        f"--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: bytes {start}-{end - 1}/{size}\r\n\r\n".encode()
        for start, end in spans
    ]
    tail = f"--{boundary}--\r\n".encode()
    framed = sum(len(head) + end - start + 2 for head, (start, end) in zip(heads, spans, strict=True)) + len(tail)
    headers["Content-Length"] = str(framed)
    framing = f"multipart/byteranges; boundary={boundary}"
    open_now = [read(*spans[0])]

    def pieces() -> Iterator[bytes]:
        for head, span in zip(heads, spans, strict=True):
            yield head
            if not open_now:
                open_now.append(read(*span))
            yield from open_now[0]
            open_now.pop().close()
            yield b"\r\n"
        yield tail

    def close() -> None:
        for reading in open_now:
            reading.close()

    return Download(pieces(), close, 206, headers, framing)
