"""A real https server with a certificate of its own authority, which can be told to break off, redirect and lie."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass
class File:
    """etag, modified: as headers; empty: the server gives none. breaks: answers are cut off after so many bytes, as many times.
    ranges: whether it gives a part. length: whether it says how long it is."""

    content: bytes
    etag: str | None = None
    modified: str = ""
    break_after: int = 0
    breaks: int = 0
    ranges: bool = True
    length: bool = True
    status: int = 0
    location: str = ""

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"' if self.etag is None else self.etag


@dataclass
class Https:
    port: int
    ca_file: Path
    files: dict[str, File] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    """(Host, path, Range) of each request."""

    def url(self, path: str, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"


@contextmanager
def server(folder: Path, *names: str) -> Iterator[Https]:
    """names: of the host, beside localhost."""
    ca_file, chain = _certificates(folder, ["localhost", *names])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.seen.append((self.headers["Host"], self.path, self.headers.get("Range", "")))
            self.close_connection = True
            with suppress(ConnectionError, ssl.SSLError):
                _answer(self, made.files.get(self.path))

        def log_message(self, *_: Any) -> None:
            """A test's output is not the place for it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that does not trust the certificate, or goes away."""

    running = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    running.socket = context.wrap_socket(running.socket, server_side=True, do_handshake_on_connect=False)
    made = Https(running.server_port, ca_file)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    running.shutdown()
    running.server_close()
    thread.join()


def _answer(handler: BaseHTTPRequestHandler, file: File | None) -> None:
    if file is None or file.status:
        handler.send_response(404 if file is None else file.status)
        if file is not None and file.location:
            handler.send_header("Location", file.location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    start, end, status = 0, len(file.content), 200
    wanted, condition = handler.headers.get("Range", ""), handler.headers.get("If-Range")
    if wanted and file.ranges and condition in (None, file.tag, file.modified):
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end, status = int(first), int(last) + 1 if last else end, 206
    body = file.content[start:end]
    handler.send_response(status)
    if status == 206:
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(file.content)}")
    if file.length:
        handler.send_header("Content-Length", str(len(body)))
    for name, value in (("ETag", file.tag), ("Last-Modified", file.modified)):
        if value:
            handler.send_header(name, value)
    handler.send_header("Connection", "close")
    handler.end_headers()
    if file.breaks and len(body) > file.break_after:
        file.breaks -= 1
        body = body[: file.break_after]
    handler.wfile.write(body)


def _certificates(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """(the authority's certificate, the server's key and chain), as PEM."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority of these tests")])
    host = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])

    def begun(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(authority, subject, key.public_key(), x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))

    root = begun(authority, keys[0]).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    signed = root.sign(keys[0], hashes.SHA256())
    others = [x509.DNSName(name) for name in names] + [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = begun(host, keys[1]).add_extension(x509.SubjectAlternativeName(others), critical=False)
    leaf_signed = leaf.sign(keys[0], hashes.SHA256())
    ca_file, chain = folder / "authority.pem", folder / "server.pem"
    ca_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key = keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain.write_bytes(key + leaf_signed.public_bytes(serialization.Encoding.PEM))
    return ca_file, chain
