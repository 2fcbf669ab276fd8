"""A bucket that is large, slow, broken, closed or shared; and the front end over one, by real HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.blobs import BlobsAwayError
from app.blobs.s3 import PART_BYTES, S3Blobs
from app.settings import Settings
from tests.app.conftest import claim, publish, safetensors, submit
from tests.app.test_blobs import CONTENT, KEY, kept, read
from tests.app.test_source_models import upload
from tests.conftest import Service, serving
from tests.s3 import Bucket


@pytest.fixture
def blobs(bucket: Bucket, tmp_path: Path) -> S3Blobs:
    made = bucket.blobs(tmp_path / "aside")
    made.prepare()
    return made


def test_a_large_file_goes_up_in_parts_and_comes_back_whole(bucket: Bucket, blobs: S3Blobs, tmp_path: Path):
    content = bytes(range(256)) * (2 * PART_BYTES // 256) + b"the rest"
    kept(blobs, content=content)
    parts = {line.partition("partNumber=")[2] for line in bucket.proxy.seen if line.startswith("PUT")}
    assert parts == {"1", "2", "3"} and bucket.begun() == []
    assert blobs.local(KEY, tmp_path / "here").read_bytes() == content
    assert read(blobs, len(content) - 20, len(content)) == content[-20:]


def test_an_upload_of_which_a_part_fails_leaves_nothing(bucket: Bucket, blobs: S3Blobs):
    bucket.proxy.fails = lambda method, path: method == "PUT" and "partNumber=2" in path
    with pytest.raises(BlobsAwayError, match="InternalError"):
        kept(blobs, content=bytes(2 * PART_BYTES))
    assert len([line for line in bucket.proxy.seen if "partNumber=2" in line]) == 3, "tried again, and not for ever"
    assert bucket.objects() == bucket.begun() == [] and list(blobs.aside.iterdir()) == []


def test_abandoned_uploads_are_called_off_and_those_under_way_are_not(bucket: Bucket, blobs: S3Blobs):
    """The server dates every upload in 2010; the proxy puts the date right where the test is of a new one."""
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"ours/{KEY}")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"others/{KEY}")

    def begun_now(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        return headers, body.replace(b"2010-11-10T20:48:33.000Z", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z").encode())

    bucket.proxy.rewritten = begun_now
    assert blobs.clear_aside(3600) == 0
    bucket.proxy.obey()
    assert blobs.clear_aside(3600) == 1
    assert bucket.begun() == [f"others/{KEY}"], "another's upload is another's"


def test_ages_are_by_the_stores_clock(bucket: Bucket, blobs: S3Blobs):
    """A store that is two hours ahead of us dates its objects and its answers alike."""
    kept(blobs)

    def ahead(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        later = datetime.now(UTC) + timedelta(hours=2)
        return {name: value for name, value in headers.items() if name.lower() != "date"} | {"Date": format_datetime(later)}, body

    bucket.proxy.rewritten = ahead
    assert list(blobs.keys_older_than(3600)) == [KEY], "written two hours ago, as the store counts"
    assert list(blobs.keys_older_than(3 * 3600)) == []


def test_a_download_goes_on_where_its_connection_broke(bucket: Bucket, blobs: S3Blobs, tmp_path: Path):
    content = CONTENT * 4
    kept(blobs, content=content)
    bucket.proxy.mode = "cut"
    assert read(blobs, 0, len(content)) == content
    assert len([line for line in bucket.proxy.seen if line.startswith("GET")]) > 5
    bucket.proxy.obey()
    reading = blobs.read(KEY, 0, len(content))
    pieces = iter(reading)
    next(pieces)
    bucket.proxy.mode = "500"
    reading._body.close()  # as if the connection had broken
    with closing(reading), pytest.raises(BlobsAwayError):
        list(pieces)


def test_a_store_that_fails_for_a_moment_is_asked_again(bucket: Bucket, blobs: S3Blobs):
    bucket.proxy.fails = lambda *_: len(bucket.proxy.seen) <= 2
    kept(blobs)
    assert read(blobs, 0, len(CONTENT)) == CONTENT


def test_a_store_that_hangs_is_told_soon(bucket: Bucket, tmp_path: Path):
    blobs = bucket.blobs(tmp_path / "aside", read_s=0.6)
    bucket.proxy.mode = "hang"
    began = time.monotonic()
    with pytest.raises(BlobsAwayError, match="nothing answers"):
        blobs.check()
    assert time.monotonic() - began < 3
    with pytest.raises(BlobsAwayError):
        blobs.read(KEY, 0, 1)


@pytest.mark.parametrize(
    ("endpoint", "named", "words"),
    [(None, "no-such-bucket", "there is no bucket 'no-such-bucket'"), ("http://127.0.0.1:1", None, "nothing answers for s3://")],
)
def test_what_is_wrong_with_an_address_is_told(
    bucket: Bucket, tmp_path: Path, endpoint: str | None, named: str | None, words: str
):
    blobs = S3Blobs(named or bucket.name, "ours", endpoint or bucket.server, tmp_path / "aside")
    with pytest.raises(BlobsAwayError, match=words):
        blobs.check()


def test_missing_credentials_are_told(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(BlobsAwayError, match="set AWS_ACCESS_KEY_ID"):
        S3Blobs(bucket.name, "ours", bucket.server, tmp_path).check()


def test_wrong_credentials_are_told(bucket: Bucket, blobs: S3Blobs):
    """From the server's own mouth: for a moment it wants to know who asks."""
    httpx.post(f"{bucket.server}/moto-api/reset-auth", content=b"0")
    try:
        with pytest.raises(BlobsAwayError, match=r"refuses these credentials \(InvalidAccessKeyId"):
            blobs.check()
    finally:
        httpx.post(f"{bucket.server}/moto-api/reset-auth", content=b"inf")


def test_a_clock_that_the_store_finds_wrong_is_told(bucket: Bucket, blobs: S3Blobs):
    bucket.proxy.mode = "skew"
    with pytest.raises(
        BlobsAwayError, match=r"refuses the time of this request \(RequestTimeTooSkewed\): set this machine's clock"
    ):
        blobs.check()


# The front end over it -----------------------------------------------------------------------------------------------


@pytest.fixture
def over(bucket: Bucket, new_database_url: Callable[[str], str], tmp_path: Path, data_root: Path) -> Iterator[Service]:
    settings = Settings(
        data_dir=tmp_path / "var",
        database_url=new_database_url("sqlite"),
        data_roots=(data_root,),
        blobs_url=bucket.url,
        s3_endpoint_url=bucket.proxy.url,
    )
    with serving(settings) as running:
        yield running


def test_an_upload_a_download_and_a_deletion(over: Service, bucket: Bucket, request_body: dict[str, Any]):
    url = submit(over.client, request_body, safetensors()).headers["location"]
    (name,) = bucket.objects()
    assert bucket.client.get_object(Bucket=bucket.name, Key=name)["Body"].read() == safetensors()
    assert list(over.blobs.aside.iterdir()) == []
    content = bytes(range(256)) * 4000
    publish(over, claim(over), content)

    whole = over.client.get(url + "/model")
    assert whole.status_code == 200 and whole.content == content and whole.headers["content-length"] == str(len(content))
    etag, written_at = whole.headers["etag"], whole.headers["last-modified"]
    before = len(bucket.proxy.seen)
    head = over.client.head(url + "/model")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))
    assert over.client.get(url + "/model", headers={"If-None-Match": etag}).status_code == 304
    assert len(bucket.proxy.seen) == before, "the store is not asked for what the database knows"

    def ranged(wanted: str, **headers: str) -> httpx.Response:
        return over.client.get(url + "/model", headers={"Range": wanted} | headers)

    part = ranged("bytes=100-299")
    assert (part.status_code, part.content) == (206, content[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{len(content)}" and part.headers["etag"] == etag
    assert ranged("bytes=-10").content == content[-10:]
    assert ranged(f"bytes={len(content) - 5}-").content == content[-5:]
    assert ranged("bytes=5-9999999").content == content[5:]
    for same in (etag, written_at):
        assert ranged("bytes=0-9", **{"If-Range": same}).status_code == 206
    for another in ('"another"', "Thu, 01 Jan 2015 00:00:00 GMT", "nonsense"):
        assert ranged("bytes=0-9", **{"If-Range": another}).content == content
    for outside in (f"bytes={len(content)}-", "bytes=5-3", "bytes=-0", "bytes=", "bytes=1-2,5-3", "bytes=-0,9999999-"):
        refused = ranged(outside)
        assert (refused.status_code, refused.json()["code"]) == (416, "range_not_satisfiable"), outside
        assert refused.headers["content-range"] == f"bytes */{len(content)}"

    for ignored in ("lines=1-2", "1-2", "-2"):  # a unit that is not known, or none (RFC 9110, 14.2)
        assert (ranged(ignored).status_code, ranged(ignored).content) == (200, content), ignored
    for within in ("bytes=1-2,9999999-", "bytes=9999999-,-0,1-2", "Bytes=1-2", "bytes=1-2,"):  # one part is enough (14.1.2)
        assert (ranged(within).status_code, ranged(within).content) == (206, content[1:3]), within
    for asked in ("bytes=1-2", "bytes=9999999-"):
        head = over.client.head(url + "/model", headers={"Range": asked})
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(content))), "Range is of GET alone (14.2)"

    several = ranged("bytes=0-9,50-59,55-69,-3")
    boundary = several.headers["content-type"].partition("boundary=")[2]
    bodies = [piece.partition(b"\r\n\r\n")[2][:-2] for piece in several.content.split(f"--{boundary}".encode())[1:-1]]
    assert several.status_code == 206 and several.headers["content-length"] == str(len(several.content))
    assert bodies == [content[:10], content[50:70], content[-3:]]
    assert ranged("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 400, 2))).content == content

    model = over.client.get(url).json()["source_model_id"]
    assert over.client.delete(url).status_code == 204
    assert bucket.objects() == [name]
    assert over.client.delete(f"/source-models/{model}").status_code == 204
    assert bucket.objects() == []


def test_a_store_that_is_away_is_a_problem_and_then_forgotten(over: Service, bucket: Bucket, request_body: dict[str, Any]):
    url = submit(over.client, request_body, safetensors()).headers["location"]
    publish(over, claim(over), b"weights")
    bucket.proxy.mode = "500"
    answers = [
        upload(over.client, safetensors(seed=1)),
        submit(over.client, request_body, safetensors(seed=2)),
        over.client.get(url + "/model"),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "blobs_unavailable"), answer.text
        assert answer.headers["retry-after"]
        assert bucket.name not in answer.text and bucket.proxy.url not in answer.text
    assert list(over.blobs.aside.iterdir()) == []
    assert len(over.client.get("/jobs").json()["data"]) == len(over.client.get("/source-models").json()["data"]) == 1
    assert "500 InternalError" in over.client.get("/readyz").json()["checks"]["blobs"]
    # What is committed is done: the blobs of a deleted job are housekeeping's.
    assert over.client.delete(url).status_code == 204
    bucket.proxy.obey()
    assert over.client.get("/readyz").json()["checks"]["blobs"] == "ok"
    assert upload(over.client, safetensors(seed=1)).status_code == 201
    assert len(bucket.objects()) == 3


def test_a_download_that_breaks_for_good_is_cut_off_and_not_padded(over: Service, bucket: Bucket, request_body: dict[str, Any]):
    """The store gives half of it, and then nothing any more."""
    url = submit(over.client, request_body, safetensors()).headers["location"]
    publish(over, claim(over), CONTENT)
    bucket.proxy.obey()
    bucket.proxy.mode, bucket.proxy.fails = "cut", lambda *_: len(bucket.proxy.seen) > 1
    got = b""
    with over.client.stream("GET", url + "/model") as answer, pytest.raises(httpx.RemoteProtocolError):
        for piece in answer.iter_raw():
            got += piece
    assert answer.status_code == 200 and got == CONTENT[: len(CONTENT) // 2]
