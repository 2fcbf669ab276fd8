"""What of the store of docker-compose.yml can be reached from other containers, a job's process among them, and what that is good for."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError

from app.blobs.s3 import S3Blobs
from deploy import stack
from tests.deploy.test_stack import Services

OTHERS = "127.0.0.2"
"""A listener on every address answers here, too; one on 127.0.0.1 does not."""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, services: Services) -> Iterator[dict[str, int]]:
    """Of the store, listening as its container does: option -> port."""
    (host,) = [word.partition("=")[2] for word in services["store"]["command"] if word.startswith("-s3.ip.bind=")]
    folder = tmp_path_factory.mktemp("store")
    running, part = stack.Stack(folder), stack.store_of(services["store"], folder, host)
    running.begin("store", part)
    try:
        stack.until_it_answers(running, "store", f"{part.address}/healthz")
        found = {name: int(port) for name, _, port in (word.lstrip("-").partition("=") for word in part.line) if ".port" in name}
        yield {name: port for name, port in found.items() if port}
    finally:
        running.end("store")


def test_filer_and_volumes_which_ask_for_no_key_cannot_be_reached(ports: dict[str, int]) -> None:
    reached = set()
    for name, port in ports.items():
        try:
            httpx.get(f"http://{OTHERS}:{port}/", timeout=5)
        except httpx.ConnectError:
            continue
        except httpx.TransportError:  # it took the connection, and speaks another protocol
            pass
        reached.add(name)
    assert reached == {"s3.port", "s3.port.grpc"} and {"filer.port", "volume.port", "master.port"} <= ports.keys()
    assert httpx.get(f"http://{OTHERS}:{ports['s3.port']}/modalbridge").status_code == 403


def test_nobody_can_give_himself_a_key(ports: dict[str, int], tmp_path: Path) -> None:
    """By the call with which its own servers tell S3 of an identity; curl speaks HTTP/2."""

    def member(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    credential = member(1, b"intruder") + member(2, b"of-the-intruder")
    message = member(1, member(1, b"intruder") + member(2, credential) + member(3, b"Admin"))
    (tmp_path / "message").write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
    address = f"http://{OTHERS}:{ports['s3.port.grpc']}/messaging_pb.SeaweedS3IamCache/PutIdentity"
    asked = ["--http2-prior-knowledge", "--header", "content-type: application/grpc", "--header", "te: trailers"]
    command = ["curl", "--silent", "--include", "--max-time", "20", *asked, "--data-binary", f"@{tmp_path}/message", address]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "grpc-status: 16" in said, said
    intruder = {"aws_access_key_id": "intruder", "aws_secret_access_key": "of-the-intruder", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{OTHERS}:{ports['s3.port']}", **intruder)
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        client.list_buckets()
    client.close()


def test_uploads_that_nobody_will_finish_are_called_off(
    ports: dict[str, int], services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say when one began, which S3 and moto do."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, services["store"]["environment"][name])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.Session().client(
        "s3", endpoint_url=f"http://{OTHERS}:{ports['s3.port']}"
    )  # the default one keeps what keys it found first
    client.create_bucket(Bucket="uploads")
    begun = {"Bucket": "uploads", "Key": "ours/upload"}
    begun["UploadId"] = client.create_multipart_upload(**begun)["UploadId"]
    client.upload_part(**begun, PartNumber=1, Body=bytes(1000))
    blobs = S3Blobs("uploads", "ours", f"http://{OTHERS}:{ports['s3.port']}", tmp_path)
    assert blobs.clear_aside(3600) == 0
    assert blobs.clear_aside(-60) == 1
    assert "Uploads" not in client.list_multipart_uploads(Bucket="uploads")
    client.close()
