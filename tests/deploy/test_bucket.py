"""The one-shot that makes the bucket, against a server that speaks S3."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError

from demo.processes import free_port
from deploy import bucket
from tests.worker.embedded import ROOT, wait_for


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: answers(url), "moto's server", 60)
            yield url
        finally:
            server.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_it_makes_the_bucket_and_finds_it_there(endpoint: str) -> None:
    line = [sys.executable, str(ROOT / "deploy/bucket.py"), "s3://one/prefix", "--endpoint-url", endpoint]
    for _ in range(2):
        done = subprocess.run(line, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "the bucket one is there\n"), done.stderr
    assert [found["Name"] for found in boto3.client("s3", endpoint_url=endpoint).list_buckets()["Buckets"]] == ["one"]


class Forbidden(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


def test_a_bucket_that_may_not_be_looked_at_is_an_error_and_no_reason_to_make_one() -> None:
    with HTTPServer(("127.0.0.1", 0), Forbidden) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClientError, match="Forbidden"):
            bucket.make("s3://one", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize("url", ["http://bucket", "s3://", "bucket", str(Path("/a/folder"))])
def test_what_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not s3://BUCKET/PREFIX"):
        bucket.make(url, None)
