"""References into buckets: what may be named, what is looked at before a job is accepted, and what a store may say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app import remote
from app.buckets import Buckets
from app.errors import Problem
from app.jobs.table import Job
from app.settings import Settings
from tests.app.conftest import make_data, safetensors, submit
from tests.archives import made
from tests.conftest import Service, serving
from tests.s3 import Bucket


def put(bucket: Bucket, folder: Path, prefix: str) -> None:
    """Everything below the folder, as objects."""
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=path.read_bytes())


@pytest.fixture
def open_bucket(new_database_url: Callable[[str], str], tmp_path: Path, data_root: Path, bucket: Bucket) -> Iterator[Service]:
    """A front end whose jobs may read below data/ of the bucket, by way of its proxy."""
    settings = Settings(
        data_dir=tmp_path / "var",
        database_url=new_database_url("sqlite"),
        data_roots=(data_root,),
        data_buckets=(f"s3://{bucket.name}/data",),
        data_s3_endpoint_url=bucket.proxy.url,
    )
    with serving(settings) as service:
        put(bucket, make_data(tmp_path / "packed"), "data")
        yield service


def in_bucket(body: dict[str, Any], bucket: Bucket) -> dict[str, Any]:
    where = f"s3://{bucket.name}/data"
    sets = {"target": "target", "pairs": "pairs", "evaluation": "test"}
    return body | {"data": {name: {"uri": f"{where}/{folder}"} for name, folder in sets.items()}}


def pins(service: Service, job_id: str) -> dict[str, dict[str, Any]]:
    with service.db.read() as session:
        return {pin["uri"]: pin for pin in session.get(Job, job_id).pins}


def test_a_job_may_name_folders_of_a_bucket_and_they_are_pinned(
    open_bucket: Service, request_body: dict[str, Any], bucket: Bucket
) -> None:
    body = in_bucket(request_body, bucket)
    answer = submit(open_bucket.client, body, safetensors())
    assert answer.status_code == 202, answer.text
    first = pins(open_bucket, answer.json()["id"])
    assert first.keys() == {one["uri"] for one in body["data"].values()}
    target = body["data"]["target"]["uri"]
    assert first[target]["version"].startswith("etags-sha256:") and first[target]["size"] > 0
    bucket.client.put_object(Bucket=bucket.name, Key="data/target/003.png", Body=b"another image")
    again = pins(open_bucket, submit(open_bucket.client, body, safetensors()).json()["id"])
    assert {uri for uri in first if first[uri] != again[uri]} == {target}


def test_lists_and_csv_files_of_a_bucket_are_read(open_bucket: Service, request_body: dict[str, Any], bucket: Bucket) -> None:
    body = in_bucket(request_body, bucket)
    where = f"s3://{bucket.name}/data"
    for name, text in {
        "target.txt": "".join(f"target/{n:03}.png\n" for n in range(9)),
        "pairs.csv": "rgb,depth\n" + "".join(f"pairs/rgb/{n:03}.png,pairs/depth/{n:03}.png\n" for n in range(8)),
        "bad.csv": "rgb,depth\npairs/rgb/000.png,pairs/depth/nothing.png\n",
    }.items():
        bucket.client.put_object(Bucket=bucket.name, Key=f"data/{name}", Body=text.encode())
    body["data"]["target"] = {"uri": f"{where}/target.txt", "layout": "list"}
    body["data"]["pairs"]["uri"] = f"{where}/pairs.csv"
    answer = submit(open_bucket.client, body, safetensors())
    assert answer.status_code == 202, answer.text
    assert where in pins(open_bucket, answer.json()["id"]), "the folder of both"
    body["data"]["pairs"]["uri"] = f"{where}/bad.csv"
    problem = submit(open_bucket.client, body, safetensors()).json()
    assert (problem["code"], problem["pointer"]) == ("reference_missing", "/data/pairs/uri") and "line 2" in problem["detail"]


def test_an_archive_in_a_bucket_is_pinned_and_its_layout_is_left_to_the_worker(
    open_bucket: Service, request_body: dict[str, Any], bucket: Bucket
) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="data/all.tar.gz", Body=made("tar.gz", {"a.png": b"x"}))
    uri = f"s3://{bucket.name}/data/all.tar.gz"
    body = in_bucket(request_body, bucket)
    body["data"]["target"]["uri"] = f"{uri}#target"
    answer = submit(open_bucket.client, body, safetensors())
    assert answer.status_code == 202, answer.text
    assert pins(open_bucket, answer.json()["id"])[uri]["version"].startswith('etag:"')


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("s3://{bucket}/other/target", "reference_forbidden"),
        ("s3://{bucket}", "reference_forbidden"),
        ("s3://{bucket}/database", "reference_forbidden"),
        ("s3://elsewhere/data/target", "reference_forbidden"),
        ("s3://{bucket}/data/../other", "reference_scheme"),
        ("s3://{bucket}/data/%2e%2e/other", "reference_scheme"),
        ("s3://{bucket}/data/target?versionId=1", "reference_scheme"),
        ("s3://{bucket}/data/target#inside", "reference_scheme"),
        ("s3://user:pass@{bucket}/data/target", "reference_scheme"),
        ("s3:///data/target", "reference_scheme"),
        ("s3://{bucket}/data/nothing", "reference_missing"),
        ("s3://{bucket}/data/nothing.zip", "reference_missing"),
        ("s3://{bucket}/data/test/box", "too_few_images"),
        ("gs://{bucket}/data", "reference_scheme"),
    ],
)
def test_what_may_not_be_read_or_is_not_there_is_refused(
    open_bucket: Service, request_body: dict[str, Any], bucket: Bucket, uri: str, code: str
) -> None:
    body = in_bucket(request_body, bucket)
    body["data"]["target"]["uri"] = uri.format(bucket=bucket.name)
    seen = len(bucket.proxy.seen)
    problem = submit(open_bucket.client, body, safetensors()).json()
    assert (problem["code"], problem["pointer"]) == (code, "/data/target/uri"), problem
    assert code not in ("reference_forbidden", "reference_scheme") or len(bucket.proxy.seen) == seen, "nothing was asked"


def test_a_key_that_would_lead_elsewhere_on_a_disk_is_refused(
    open_bucket: Service, request_body: dict[str, Any], bucket: Bucket
) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="data/target/a\\b.png", Body=b"x")
    problem = submit(open_bucket.client, in_bucket(request_body, bucket), safetensors()).json()
    assert (problem["code"], problem["entry"]) == ("archive_unsafe", "a\\b.png")


def test_a_store_that_fails_or_refuses_is_told_apart(open_bucket: Service, request_body: dict[str, Any], bucket: Bucket) -> None:
    body = in_bucket(request_body, bucket)
    bucket.proxy.mode = "500"
    answer = submit(open_bucket.client, body, safetensors())
    assert (answer.status_code, answer.json()["code"]) == (503, "reference_away")
    bucket.proxy.obey()
    assert submit(open_bucket.client, body, safetensors()).status_code == 202


def look(settings: Settings, uri: str) -> tuple[list[Any], remote.Pin]:
    return Buckets(settings).look(remote.parse(uri, "/x"), "/x")


def test_an_object_that_was_replaced_is_not_read(bucket: Bucket) -> None:
    settings = Settings(data_buckets=(f"s3://{bucket.name}",), s3_endpoint_url=bucket.server)
    bucket.client.put_object(Bucket=bucket.name, Key="a/1.png", Body=b"one")
    (one,), _ = look(settings, f"s3://{bucket.name}/a")
    bucket.client.put_object(Bucket=bucket.name, Key="a/1.png", Body=b"two")
    led = remote.parse(f"s3://{bucket.name}/a", "/x")
    with pytest.raises(Problem) as caught:
        Buckets(settings).reading(led, one, 0, 3, "/x")
    assert caught.value.code == "reference_changed"


def test_more_than_is_fetched_is_refused(bucket: Bucket) -> None:
    settings = Settings(
        data_buckets=(f"s3://{bucket.name}",), s3_endpoint_url=bucket.server, max_unpacked_bytes=5, max_dataset_bytes=4
    )
    for key in ("a/1.png", "a/2.png", "b.zip"):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"12345")
    for uri in (f"s3://{bucket.name}/a", f"s3://{bucket.name}/b.zip"):
        with pytest.raises(Problem) as caught:
            look(settings, uri)
        assert caught.value.code == "reference_too_large"


def test_names_are_unquoted_and_an_open_bucket_is_open_to_its_root(bucket: Bucket) -> None:
    settings = Settings(data_buckets=(f"s3://{bucket.name}/",), s3_endpoint_url=bucket.server)
    bucket.client.put_object(Bucket=bucket.name, Key="my data/#1/ä.png", Body=b"one")
    objects, pin = look(settings, f"s3://{bucket.name}/my%20data/%231")
    assert [one.name for one in objects] == ["ä.png"] and pin.uri == f"s3://{bucket.name}/my%20data/%231"
    assert [one.name for one in look(settings, f"s3://{bucket.name}")[0]] == ["my data/#1/ä.png"]


@pytest.mark.parametrize("opened", ["s3://bucket", "s3://bucket/ours", "s3://bucket/ours/deeper"])
def test_the_bucket_of_the_blobs_is_not_opened(opened: str) -> None:
    with pytest.raises(ValidationError, match="blob store"):
        Settings(blobs_url="s3://bucket/ours", data_buckets=(opened,))
    assert Settings(blobs_url="s3://bucket/ours", data_buckets=("s3://bucket/ours-not",)).data_buckets
    assert Settings(blobs_url="s3://bucket", data_buckets=(opened,), data_s3_endpoint_url="http://other:9000").data_buckets


@pytest.mark.parametrize("value", ["bucket", "s3://", "https://bucket", "s3://bucket,bucket"])
def test_settings_that_are_no_buckets_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALBRIDGE_DATA_BUCKETS", value)
    with pytest.raises(ValidationError, match="data_buckets"):
        Settings()
    monkeypatch.setenv("MODALBRIDGE_DATA_BUCKETS", "s3://one, s3://two/prefix")
    assert Settings().data_buckets == ("s3://one", "s3://two/prefix")
