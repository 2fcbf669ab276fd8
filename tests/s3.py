"""A real S3-speaking server (moto's), a bucket of it for each test, and a proxy before it that can be told to fail."""

from __future__ import annotations

import copy
import functools
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from moto.server import ThreadedMotoServer

from app.blobs.s3 import S3Blobs

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "not-to-be-passed-on", "AWS_DEFAULT_REGION": "us-east-1"}


class Proxy:
    """mode: pass, 500 (the store answers so), skew (it finds the client's clock wrong, as S3 does from 15 minutes on), hang (it
    says nothing), or cut (half of each large answer).
    fails: answers 500 to the requests for which it is true. rewritten: what becomes of an answer's headers and body."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.closing = threading.Event()
        self.obey()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def relay(self) -> None:
                proxy.relay(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """A test's output is not the place for it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def obey(self) -> None:
        """As at the beginning."""
        self.mode = "pass"
        self.fails: Callable[[str, str], bool] = lambda _method, _path: False
        self.rewritten: Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]] = lambda headers, body: (headers, body)
        self.seen: list[str] = []
        """METHOD path, in the order of their coming."""

    def relay(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.seen.append(f"{handler.command} {handler.path}")
        handler.close_connection = True
        while self.mode == "hang" and not self.closing.is_set():
            self.closing.wait(0.02)
        if self.closing.is_set():
            return
        if self.mode == "500" or self.fails(handler.command, handler.path):
            self._answer(handler, 500, {}, b"<Error><Code>InternalError</Code><Message>out of order</Message></Error>")
            return
        if self.mode == "skew":
            said = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"
            self._answer(handler, 403, {}, said)
            return
        asked = {name: value for name, value in handler.headers.items() if name.lower() not in ("expect", "connection")}
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        connection.request(handler.command, handler.path, body, asked)
        answer = connection.getresponse()
        got = answer.read()
        headers, content = self.rewritten(dict(answer.getheaders()), got)
        if handler.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(content))
        if self.mode == "cut" and len(content) > 1000:
            content = content[: len(content) // 2]
        self._answer(handler, answer.status, headers, content)
        connection.close()

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        with suppress(ConnectionError):  # its client waits no longer
            handler.send_response_only(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                if name.lower() not in ("connection", "transfer-encoding"):
                    handler.send_header(name, value)
            handler.send_header("Connection", "close")
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(body)

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield self
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        thread.join()


@dataclass
class Bucket:
    """Empty at first. proxy: stands before the server."""

    name: str
    server: str
    proxy: Proxy
    client: Any

    @property
    def url(self) -> str:
        """As MODALBRIDGE_BLOBS_URL has it."""
        return f"s3://{self.name}/ours"

    def blobs(self, aside: Path, read_s: float = 5) -> S3Blobs:
        """By way of the proxy."""
        made = copy.copy(_blobs(self.proxy.url, read_s))
        made.bucket, made.aside = self.name, aside
        return made

    def objects(self) -> list[str]:
        return [found["Key"] for found in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def begun(self) -> list[str]:
        """Keys of the uploads in parts that were neither completed nor called off."""
        return [found["Key"] for found in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]


@functools.cache
def _blobs(url: str, read_s: float) -> S3Blobs:
    """A client takes a while to make, and has nothing of a bucket in it."""
    return S3Blobs("any", "ours", url, Path(), read_s=read_s)


@contextmanager
def server() -> Iterator[Callable[[str], Bucket]]:
    """Name -> a new bucket. The proxy is the same for all."""
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    url = "http://{}:{}".format(*running.get_host_and_port())
    session = boto3.session.Session(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
    client = session.client("s3", endpoint_url=url, region_name=CREDENTIALS["AWS_DEFAULT_REGION"])
    with Proxy(url).running() as proxy:

        def new(name: str) -> Bucket:
            proxy.obey()
            client.create_bucket(Bucket=name)
            return Bucket(name, url, proxy, client)

        yield new
    client.close()
    running.stop()
