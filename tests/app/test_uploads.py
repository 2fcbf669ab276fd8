"""Bodies that are too large, cut off, lying or garbled: refused while they stream, and nothing stays on the disk."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.app.conftest import safetensors
from tests.app.test_source_models import DESCRIPTION, files_in, upload
from tests.conftest import Service, serving

LIMIT = 200_000
BOUNDARY = b"frontier"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


@pytest.fixture
def small(new_database_url: Callable[[str], str], tmp_path: Path) -> Iterator[Service]:
    """A front end that takes files of up to LIMIT bytes, and JSON of up to 10,000."""
    settings = Settings(
        data_dir=tmp_path / "var", database_url=new_database_url("sqlite"), max_upload_bytes=LIMIT, max_request_bytes=10_000
    )
    with serving(settings) as running:
        yield running


def part(name: str, content: bytes, headers: bytes = b"") -> bytes:
    disposition = b'Content-Disposition: form-data; name="' + name.encode() + b'"\r\n'
    return b"--" + BOUNDARY + b"\r\n" + disposition + headers + b"\r\n" + content + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"
JSON_PART = part("description", json.dumps(DESCRIPTION).encode())
FILE_PART = part("source_model", safetensors())


def post(service: Service, body: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    return service.client.post("/source-models", content=body, headers=FORM | headers)


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def refused(service: Service, answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert files_in(service.blobs) == []
    assert service.client.get("/source-models").json()["data"] == []


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("parts", [JSON_PART + FILE_PART, FILE_PART + JSON_PART], ids=["json first", "file first"])
def test_parts_in_any_order_in_chunks_of_any_size(small: Service, parts: bytes, size: int) -> None:
    answer = post(small, pieces(parts + END, size))
    assert answer.status_code == 201, answer.text
    assert [path.read_bytes() for path in files_in(small.blobs)] == [safetensors()]


@pytest.mark.parametrize("values", [1, 300, 12_000])
def test_content_that_looks_like_the_boundary_arrives_whole(small: Service, values: int) -> None:
    header = {"w": {"dtype": "U8", "shape": [16 * values], "data_offsets": [0, 16 * values]}}
    raw = json.dumps(header).encode()
    content = len(raw).to_bytes(8, "little") + raw + (b"\r\n--frontie\r\n--f" * values)[: 16 * values]
    answer = post(small, pieces(JSON_PART + part("source_model", content) + END, 997))
    assert answer.status_code == 201, answer.text
    assert [path.read_bytes() for path in files_in(small.blobs)] == [content]


def test_a_file_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(small: Service) -> None:
    def file(total: int) -> bytes:
        count = total - len(safetensors(0)) - 100
        header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
        header += b" " * (total - 8 - len(header) - count)
        return len(header).to_bytes(8, "little") + header + bytes(count)

    assert len(file(LIMIT)) == LIMIT
    answer = upload(small.client, file(LIMIT + 1))
    refused(small, answer, 413, "payload_too_large")
    assert answer.json()["limit"] == LIMIT and str(LIMIT) in answer.json()["detail"]
    assert upload(small.client, file(LIMIT)).status_code == 201


def test_an_endless_chunked_upload_is_refused_at_the_limit(small: Service) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield JSON_PART + part("source_model", b"")[:-2]
        while sent < 50 * LIMIT:
            sent += 10_000
            yield bytes(10_000)

    refused(small, post(small, endless()), 413, "payload_too_large")


def test_a_content_length_over_the_limit_is_refused_before_the_body(small: Service) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /source-models HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n"
            b"Content-Type: multipart/form-data; boundary=frontier\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413"), "and no 100 Continue asks for the body"


def test_a_content_length_that_is_too_small_cuts_the_body(small: Service) -> None:
    body = JSON_PART + FILE_PART + END
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /source-models HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
            b"Content-Type: multipart/form-data; boundary=frontier\r\n\r\n" % (len(body) - 30) + body
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert files_in(small.blobs) == []


def test_a_client_that_goes_away_leaves_nothing(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /source-models HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
            b"Content-Type: multipart/form-data; boundary=frontier\r\n\r\n"
            + JSON_PART
            + part("source_model", bytes(3 * 2**20))[:-2]
        )
        assert until(lambda: bool(files_in(service.blobs))), "the upload reached the disk"
    assert until(lambda: not files_in(service.blobs)), "and left it again"
    assert service.client.get("/healthz").status_code == 200


def until(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing like it",
        END,
        JSON_PART + FILE_PART,
        JSON_PART + FILE_PART + END[:-4],
        JSON_PART + JSON_PART + FILE_PART + END,
        FILE_PART + JSON_PART + FILE_PART + END,
        JSON_PART + FILE_PART + part("surprise", b"x") + END,
        JSON_PART + part("source_model", b"eA==", b"Content-Transfer-Encoding: base64\r\n") + END,
        b"--" + BOUNDARY + b"\r\n\r\nx\r\n" + END,
        b"--" + BOUNDARY + b"\r\nContent-Disposition: attachment\r\n\r\nx\r\n" + END,
        b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        JSON_PART + part("source_model", b"x", b"X: " + b"y" * 10_000 + b"\r\n") + END,
        JSON_PART + part("source_model", b"x", b"".join(b"X-%d: y\r\n" % n for n in range(1000))) + END,
    ],
    ids=[
        "empty", "garbage", "no parts", "no closing boundary", "half a closing boundary", "json twice", "file twice",
        "unknown part", "base64", "no headers", "no form-data", "no name", "huge header", "many headers",
    ],
)  # fmt: skip
def test_a_garbled_multipart_is_refused(small: Service, body: bytes) -> None:
    refused(small, post(small, body), 400, "malformed_multipart")
    refused(small, post(small, pieces(body, 11)), 400, "malformed_multipart")


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 300])
def test_a_boundary_that_is_none_is_refused(small: Service, boundary: str) -> None:
    answer = post(small, JSON_PART + END, **{"Content-Type": "multipart/form-data" + boundary})
    refused(small, answer, 400, "malformed_multipart")


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "text/plain"}, {"Content-Type": ""}, {"Content-Type": "application/x-www-form-urlencoded"},
     {"Content-Encoding": "gzip"}],
)  # fmt: skip
def test_another_content_type_is_refused(small: Service, headers: dict[str, str]) -> None:
    refused(small, post(small, JSON_PART + FILE_PART + END, **headers), 415, "unsupported_media_type")


def test_json_over_its_limit_is_refused_in_either_form(small: Service) -> None:
    refused(small, post(small, part("description", b" " * 10_001) + FILE_PART + END), 413, "payload_too_large")
    for body in (b" " * 10_001, pieces(b" " * 10_001, 1000)):
        answer = small.client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
        refused(small, answer, 413, "payload_too_large")
        assert answer.json()["limit"] == 10_000
    answer = small.client.post("/jobs", content=b"{}", headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.json()["code"] == "invalid_request", "a body within the limit is read"


def test_an_epilogue_without_end_is_refused(small: Service) -> None:
    refused(small, post(small, pieces(JSON_PART + FILE_PART + END + bytes(500_000), 10_000)), 413, "payload_too_large")


SERVE = """
import socket, sys, uvicorn
from app.main import create_app
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(create_app(), log_level="error")).run(sockets=[listener])
"""


@contextmanager
def process(folder: Path, database_url: str, *prefix: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A front end in a process of its own, its blobs below `folder`."""
    environment = os.environ | {"MODALBRIDGE_DATA_DIR": str(folder), "MODALBRIDGE_DATABASE_URL": database_url}
    with subprocess.Popen([*prefix, sys.executable, "-c", SERVE], env=environment, stdout=subprocess.PIPE, text=True) as running:
        try:
            port = running.stdout.readline().strip()
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                assert until(lambda: _answers(client), 30), "the front end did not start"
                yield running, client
        finally:
            running.send_signal(signal.SIGKILL)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_full_disk_is_a_problem_and_then_forgotten(new_database_url: Callable[[str], str], tmp_path: Path) -> None:
    """The blobs lie on a file system of one mebibyte."""
    (tmp_path / "var" / "blobs").mkdir(parents=True)
    mount = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/var/blobs && exec \"$@\"", "sh"]  # fmt: skip
    if subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    with process(tmp_path / "var", new_database_url("sqlite"), *mount) as (running, client):
        blobs = Path(f"/proc/{running.pid}/root{tmp_path}/var/blobs")
        # Large enough to fail while it streams; just too large, so that only the last block does not fit.
        for size in (8 * 2**20, 2**20 + 1):
            answer = upload(client, bytes(size))
            assert (answer.status_code, answer.json()["code"]) == (507, "storage_full"), answer.text
            assert [path for path in blobs.rglob("*") if path.is_file()] == []
        assert upload(client).status_code == 201, "what fits is taken afterwards"


def test_a_large_upload_costs_little_memory(new_database_url: Callable[[str], str], tmp_path: Path) -> None:
    def peak() -> int:
        status = Path(f"/proc/{running.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def body() -> Iterator[bytes]:
        yield JSON_PART + part("source_model", b"")[:-2]
        for _ in range(200):
            yield bytes(2**20)
        yield b"\r\n" + END

    with process(tmp_path / "var", new_database_url("sqlite")) as (running, client):
        upload(client)
        before = peak()
        answer = client.post("/source-models", content=body(), headers=FORM)
        assert answer.json()["code"] == "source_model_format", "200 MiB of zeros arrived, and are no model"
        assert peak() - before < 20 * 2**20
