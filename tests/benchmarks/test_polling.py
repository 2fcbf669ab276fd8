"""The poller of benchmarks.polling, before a server that refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from benchmarks.polling import polled


@contextmanager
def serving(answered: int) -> Iterator[str]:
    """A job that has succeeded, to whoever waits for it; to whoever polls it, so often. Then 503."""
    left = [answered]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            waits = "wait=" in self.path
            left[0] -= not waits
            body = json.dumps({"status": "succeeded", "phase": None}).encode() if waits else b""
            self.send_response(200 if waits or left[0] >= 0 else 503)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_job_is_polled_as_often_as_it_says() -> None:
    with serving(answered=20) as url, httpx.Client(base_url=url) as client:
        job, latencies = polled(client, "/jobs/job_x", polls=20, over_s=0.2)
    assert job["status"] == "succeeded" and len(latencies) == 20


def test_a_poll_that_fails_ends_the_benchmark() -> None:
    with serving(answered=3) as url, httpx.Client(base_url=url) as client, pytest.raises(RuntimeError, match="503"):
        polled(client, "/jobs/job_x", polls=20, over_s=0.2)
