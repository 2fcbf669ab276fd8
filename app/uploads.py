"""Bodies as they stream in: texts in memory, a file straight to the disk, every byte counted.

Content-Length is only believed when it says "too much": it can lie, or be absent. About a mebibyte of a file is held at a
time, whatever its size; it is written and hashed in a worker thread, so that a slow disk does not hold the event loop.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from anyio import CancelScope
from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from app.blobs import Blobs, Staged, full_disk_told
from app.errors import Problem
from app.settings import Settings

_BLOCK = 2**20
_FRAMING = 2**16
"""For boundaries, part headers, and what precedes and follows the parts."""


@dataclass
class Received:
    """What came: texts by their parts. The file is gone at the end of `with received:` unless it was kept."""

    texts: dict[str, bytes]
    staged: Staged | None

    def __enter__(self) -> Received:
        return self

    def __exit__(self, *error: object) -> None:
        if self.staged is not None:
            self.staged.__exit__(*error)


async def receive(
    request: Request,
    *,
    texts: Collection[str],
    file_part: str,
    blobs: Blobs,
    settings: Settings,
    json_part: str | None = None,
    max_file_bytes: int | None = None,
) -> Received:
    """The body: multipart/form-data with any of these parts, in any order; or application/json, as `json_part` alone, where
    there is one.

    The texts together are as long as a JSON body may be. max_file_bytes: that of the settings for a source model, unless it is
    given. Raises Problem unsupported_media_type, malformed_multipart, payload_too_large, storage_full; nothing is then left on the
    disk.
    """
    media_type, options = _media_type(request)
    if json_part is not None and media_type == b"application/json":
        return Received({json_part: await _json(request, settings.max_request_bytes)}, None)
    if media_type != b"multipart/form-data":
        raise _unsupported(media_type)
    if not (boundary := options.get(b"boundary")):
        raise Problem("malformed_multipart", "the Content-Type names no boundary")
    file_limit = max_file_bytes or settings.max_upload_bytes
    try:
        body = _Body(boundary, texts, file_part, settings.max_request_bytes, file_limit)
    except FormParserError as error:
        raise Problem("malformed_multipart", str(error)) from error
    if _announced(request) > body.limit:
        raise _too_large(f"Content-Length is {_announced(request)}, of which the file may be", file_limit)
    try:
        return await _multipart(request, body, blobs)
    except BaseException:
        if body.staged is not None:
            with CancelScope(shield=True):
                await run_sync(body.staged.__exit__)
        raise


async def receive_json(request: Request, settings: Settings) -> bytes:
    """A body of application/json. Raises Problem unsupported_media_type, payload_too_large, malformed_json."""
    media_type = _media_type(request)[0]
    if media_type != b"application/json":
        raise _unsupported(media_type)
    return await _json(request, settings.max_request_bytes)


def _media_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    """And its options. Raises Problem unsupported_media_type where the body is packed."""
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Problem("unsupported_media_type", f"Content-Encoding {encoding[:100]!r}: bodies are taken as they are")
    return parse_options_header(request.headers.get("content-type"))


def _unsupported(media_type: bytes) -> Problem:
    shown = media_type.decode("latin-1")[:100]
    return Problem("unsupported_media_type", f"Content-Type {shown!r}" if shown else "there is no Content-Type")


def _announced(request: Request) -> int:
    """Content-Length, or 0 where it says nothing."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0


def _too_large(what: str, limit: int) -> Problem:
    return Problem("payload_too_large", f"{what} at most {limit} bytes", limit=limit)


async def _json(request: Request, limit: int) -> bytes:
    if _announced(request) > limit:
        raise _too_large(f"Content-Length is {_announced(request)}; a JSON body has", limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise _too_large("a JSON body has", limit)
    except ClientDisconnect as error:
        raise Problem("malformed_json", "the client went away before the body's end") from error
    return bytes(body)


async def _multipart(request: Request, body: _Body, blobs: Blobs) -> Received:
    try:
        async for chunk in request.stream():
            body.feed(chunk)
            if body.waiting_bytes >= _BLOCK:
                await run_sync(body.write, blobs)
    except ClientDisconnect as error:
        raise Problem("malformed_multipart", "the client went away before the body's end") from error
    except FormParserError as error:
        raise Problem("malformed_multipart", str(error)) from error
    if not body.ended:
        raise Problem("malformed_multipart", "the body ends before its closing boundary")
    await run_sync(body.finish, blobs)
    return Received({part: bytes(text) for part, text in body.texts.items() if part in body.seen}, body.staged)


class _Body:
    """A multipart body as far as it has come. feed() runs on the event loop, write() and finish() in a thread, in turns."""

    def __init__(self, boundary: bytes, texts: Collection[str], file_part: str, text_limit: int, file_limit: int) -> None:
        self.texts = {part: bytearray() for part in texts}
        self.file_part, self.text_limit, self.file_limit = file_part, text_limit, file_limit
        self.limit = text_limit + file_limit + _FRAMING
        self.staged: Staged | None = None
        self.seen: set[str] = set()
        self.ended = False
        self.waiting: list[bytes] = []
        self.waiting_bytes = 0
        self._total = 0
        self._part = ""
        self._text_bytes = self._file_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Raises FormParserError, Problem malformed_multipart, payload_too_large."""
        self._total += len(chunk)
        if self._total > self.limit:
            raise _too_large("the body outgrows its parts, which have", self.limit)
        self._parser.write(chunk)

    def write(self, blobs: Blobs) -> None:
        """Takes what waits to the disk. Raises Problem storage_full."""
        if self.staged is None:
            self.staged = blobs.stage()
        for block in self.waiting:
            self.staged.write(block)
        self.waiting.clear()
        self.waiting_bytes = 0

    def finish(self, blobs: Blobs) -> None:
        """The file can be read by its path afterwards, whole. Raises Problem storage_full."""
        if self.file_part in self.seen:
            self.write(blobs)
            with full_disk_told():
                self.staged.file.flush()

    def _part_begins(self) -> None:
        self._headers = {}
        self._part = ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_end(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise Problem("malformed_multipart", "a part has no Content-Disposition: form-data with a name")
        name = options[b"name"].decode("utf-8", "replace")
        if name not in self.texts and name != self.file_part:
            known = " and ".join(repr(part) for part in (*self.texts, self.file_part))
            raise Problem("malformed_multipart", f"the part {name[:100]!r} is not known here; {known} are")
        if name in self.seen:
            raise Problem("malformed_multipart", f"the part {name!r} was sent twice")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            shown = encoding.decode("latin-1")[:100]
            raise Problem("malformed_multipart", f"the part {name!r} has Content-Transfer-Encoding {shown!r}; send it as it is")
        self.seen.add(name)
        self._part = name

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self.file_part:
            self._file_bytes += end - start
            if self._file_bytes > self.file_limit:
                raise _too_large(f"the part {self._part!r} has", self.file_limit)
            self.waiting.append(data[start:end])
            self.waiting_bytes += end - start
        else:
            self._text_bytes += end - start
            if self._text_bytes > self.text_limit:
                raise _too_large(f"the part {self._part!r} has", self.text_limit)
            self.texts[self._part] += data[start:end]

    def _end(self) -> None:
        self.ended = True
