"""What lies between a client and the service, and breaks: a real proxy on a real port, one request a connection."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPResponse

Fault = Callable[["_Handler", bytes], None]
"""Given the request as it came, does with it what it does."""


def instead(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Fault:
    """Answers by itself; the service sees nothing."""

    def fault(handler: _Handler, request: bytes) -> None:
        given = {"Content-Length": str(len(body)), "Connection": "close"} | (headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        handler.wfile.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)

    return fault


def lost(handler: _Handler, request: bytes) -> None:
    """The service does what it is asked; its answer is lost."""
    for _ in handler.answer(request):
        pass


def silent(handler: _Handler, request: bytes) -> None:
    """Nothing comes, until the client goes away."""
    handler.connection.settimeout(10)
    handler.rfile.read(1)


def late(seconds: float) -> Fault:
    """The service is asked after a while."""

    def fault(handler: _Handler, request: bytes) -> None:
        time.sleep(seconds)
        for piece in handler.answer(request):
            handler.wfile.write(piece)

    return fault


def cut(after: int) -> Fault:
    """The connection breaks after so many bytes of the answer's body."""

    def fault(handler: _Handler, request: bytes) -> None:
        came = b""
        for piece in handler.answer(request):
            came += piece
            head, end, body = came.partition(b"\r\n\r\n")
            if len(body) >= after:
                break
        handler.wfile.write(head + end + body[:after])

    return fault


def damaged(handler: _Handler, request: bytes) -> None:
    """The first byte of the answer's body is another."""
    head, end, body = b"".join(handler.answer(request)).partition(b"\r\n\r\n")
    handler.wfile.write(head + end + bytes([body[0] ^ 1]) + body[1:])


def renamed(old: bytes, new: bytes) -> Fault:
    """The answer with one text for another of the same length."""

    def fault(handler: _Handler, request: bytes) -> None:
        handler.wfile.write(b"".join(handler.answer(request)).replace(old, new))

    return fault


def compressed(whether_allowed_or_not: bool) -> Fault:
    """The answer by gzip, each piece as it comes; else only if the request takes gzip."""

    def fault(handler: _Handler, request: bytes) -> None:
        takes_it = re.search(rb"(?mi)^accept-encoding:.*gzip", request) is not None
        wrap = zlib.compressobj(wbits=31) if takes_it or whether_allowed_or_not else None
        with socket.create_connection(handler.server.proxy.upstream, timeout=30) as upstream:
            upstream.sendall(request)
            answer = HTTPResponse(upstream)
            answer.begin()
            coding = "Content-Encoding: gzip\r\n" if wrap else ""
            head = f"HTTP/1.1 {answer.status} X\r\nContent-Type: {answer.headers['Content-Type']}\r\n{coding}Connection: close\r\n\r\n"
            handler.wfile.write(head.encode())
            while piece := answer.read1(65536):
                handler.wfile.write(wrap.compress(piece) + wrap.flush(zlib.Z_SYNC_FLUSH) if wrap else piece)
            handler.wfile.write(wrap.flush() if wrap else b"")

    return fault


@dataclass
class Proxy:
    """faults: (how a request in `seen` begins, what happens to the next such one); used up from the front."""

    url: str
    upstream: tuple[str, int]
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Of each request: method, address, and what Range or Last-Event-ID asked for."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, line: str, told: str) -> Fault | None:
        with self.lock:
            self.seen.append(f"{line} {told}")
            for index, (start, fault) in enumerate(self.faults):
                if self.seen[-1].startswith(start):
                    del self.faults[index]
                    return fault
        return None

    def count(self, start: str) -> int:
        with self.lock:
            return sum(line.startswith(start) for line in self.seen)


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._pass_on()

    def _pass_on(self) -> None:
        line = self.rfile.readline()
        if not line:
            return
        headers = []
        while (header := self.rfile.readline()) not in (b"\r\n", b""):
            headers.append(header)
        fields = {name.strip().lower(): value.strip() for name, _, value in (header.partition(b":") for header in headers)}
        body = self.rfile.read(int(fields.get(b"content-length", b"0")))
        headers = [header for header in headers if not header.lower().startswith(b"connection:")]
        request = b"".join([line, *headers, b"Connection: close\r\n\r\n", body])
        told = (fields.get(b"range") or fields.get(b"last-event-id") or b"").decode()
        fault = self.server.proxy.next_fault(line.decode().rpartition(" ")[0], told)
        if fault is not None:
            fault(self, request)
            return
        for piece in self.answer(request):
            self.wfile.write(piece)

    def answer(self, request: bytes) -> Iterator[bytes]:
        """The service's, as it comes."""
        with socket.create_connection(self.server.proxy.upstream, timeout=30) as upstream:
            upstream.sendall(request)
            while piece := upstream.recv(65536):
                yield piece


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    proxy: Proxy


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    host, _, port = url.removeprefix("http://").partition(":")
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.block_on_close = False
        server.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}", (host, int(port)))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server.proxy
        finally:
            server.shutdown()
            thread.join()
