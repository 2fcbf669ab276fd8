"""Jobs whose data lie in a bucket: what was accepted is fetched, all of it and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.database import EMBEDDED_TENANT
from app.datasets import service as datasets
from app.jobs import service as jobs
from tests.app.test_buckets import put
from tests.archives import made, of_folder
from tests.s3 import CREDENTIALS, Bucket
from tests.worker.conftest import embedded_in
from tests.worker.embedded import QUICK, TOO_SMALL, Embedded, began, meanwhile, undisturbed, wait_for
from tests.worker.test_fetching import SCALING, entries, leftovers, naming, uploaded
from worker import sources
from worker.draining import drain


@pytest.fixture
def open_bucket(
    tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Embedded]:
    monkeypatch.setattr(sources, "AGAIN_S", (0.2, 0.2, 0.2))
    put(bucket, small_data, "data")
    bucket.client.put_object(Bucket=bucket.name, Key="all.zip", Body=of_folder("zip", small_data))
    given = {"data_buckets": (f"s3://{bucket.name}",), "data_s3_endpoint_url": bucket.proxy.url}
    with embedded_in(tmp_path, new_database_url("sqlite"), small_data, **given) as made:
        yield made


def shards(data: Path, bucket: Bucket) -> None:
    """The small data as samples, in shards of some each: target/, pairs/ and test/ of the bucket."""
    sets: dict[str, list[tuple[str, bytes]]] = {"target": [], "pairs": [], "test": []}
    for number, path in enumerate(sorted((data / "target").rglob("*.png"))):
        sets["target"].append((f"{number:04}.png", path.read_bytes()))
    for side in ("rgb", "depth"):
        for path in sorted((data / "pairs" / side).rglob("*.*")):
            key = path.relative_to(data / "pairs" / side).with_suffix("").as_posix().replace("/", "-")
            sets["pairs"].append((f"{key}.{side}{path.suffix}", path.read_bytes()))
    for number, path in enumerate(sorted((data / "test").rglob("*.png"))):
        label = path.relative_to(data / "test").parts[0]
        sets["test"] += [(f"{number:04}.png", path.read_bytes()), (f"{number:04}.cls", label.encode())]
    for name, files in sets.items():
        files.sort()
        half = len(files) // 4 * 2
        for number, some in enumerate((files[:half], files[half:])):
            bucket.client.put_object(Bucket=bucket.name, Key=f"{name}/{number:04}.tar", Body=made("tar", some))


def test_shards_in_a_bucket_are_unpacked_and_read_as_samples(open_bucket: Embedded, bucket: Bucket):
    shards(open_bucket.data, bucket)

    def of(name: str) -> dict[str, object]:
        return {"uri": f"s3://{bucket.name}/{name}", "layout": "webdataset"}

    data = {"target": of("target") | {"scaling": SCALING}, "pairs": of("pairs"), "evaluation": of("test")}
    job_id = open_bucket.submit(wake=False, data=data, **QUICK)
    drain(open_bucket.process(data_roots=()))
    job = open_bucket.job(job_id)
    assert job.status == "succeeded", open_bucket.story(job_id)
    assert job.result["accuracy"]["images"] == 36
    on_disk = open_bucket.submit(wake=False, data={"evaluation": {"uri": f"file://{open_bucket.data}/test"}}, **QUICK)
    report = json.loads(undisturbed(open_bucket, on_disk)["report.json"])
    assert report["summary"]["accuracy"] == job.result["accuracy"]


def test_a_hostile_shard_fails_the_job_and_leaves_nothing(open_bucket: Embedded, bucket: Bucket):
    bucket.client.put_object(Bucket=bucket.name, Key="bad/0.tar", Body=made("tar", {"1.png": b"x"}))
    bucket.client.put_object(Bucket=bucket.name, Key="bad/1.tar", Body=made("tar", {"../../1.png": b"x"}))
    target = {"uri": f"s3://{bucket.name}/bad", "layout": "webdataset"}
    job_id = open_bucket.submit(wake=False, data={"target": target}, **QUICK)
    drain(open_bucket.process())
    assert open_bucket.job(job_id).error["code"] == "archive_unsafe"
    assert entries(open_bucket) == [] == leftovers(open_bucket)


def test_a_dataset_comes_from_a_blob_store_that_is_away_for_a_while(
    tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path, bucket: Bucket
):
    """The store is the bucket; its keys stay through a sweep, and go with the dataset."""
    given = {"blobs_url": bucket.url, "s3_endpoint_url": bucket.proxy.url}
    with embedded_in(tmp_path, new_database_url("sqlite"), small_data, **given) as over:
        dataset = uploaded(over)
        job_id = over.submit(wake=False, **naming(dataset), **QUICK)
        seen: list[str] = []

        def fails(method: str, path: str) -> bool:
            if method == "GET" and path.endswith(dataset.id) and len(seen) < 8:
                seen.append(path)
                return True
            return False

        bucket.proxy.fails = fails
        drain(over.process(**TOO_SMALL))
        assert began(over, job_id), over.story(job_id)
        assert len(seen) == 8 and "the blob store is away" in over.story(job_id)
        assert over.blobs.keys("datasets/") == [dataset.blob_key, dataset.listing_key]
        jobs.delete(over.db, over.blobs, EMBEDDED_TENANT, job_id)
        datasets.delete(over.db, over.blobs, EMBEDDED_TENANT, dataset.id)
        assert over.blobs.keys("datasets/") == []


def submitted(embedded: Embedded, bucket: Bucket, **more: object) -> str:
    """Its target a folder of the bucket; the rest lies on the disk."""
    data = {"target": {"uri": f"s3://{bucket.name}/data/target", "scaling": SCALING}}
    return embedded.submit(wake=False, data=data | more, **QUICK)


def test_folders_and_archives_are_fetched_and_named_in_the_report(open_bucket: Embedded, bucket: Bucket):
    evaluation = {"uri": f"s3://{bucket.name}/all.zip#test"}
    job_id = submitted(open_bucket, bucket, evaluation=evaluation)
    drain(open_bucket.process())
    job = open_bucket.job(job_id)
    assert job.status == "succeeded", open_bucket.story(job_id)
    assert job.result["accuracy"]["images"] == 36
    told = {one["set"]: one["version"] for one in json.loads(open_bucket.published(job_id)["report.json"])["references"]}
    pins = {pin["uri"]: pin["version"] for pin in job.pins}
    assert told["target"] == pins[f"s3://{bucket.name}/data/target"] and told["target"].startswith("etags-sha256:")
    assert told["evaluation"].startswith("sha256:") and told["pairs"] is None
    assert len(entries(open_bucket)) == 2
    gets = [line for line in bucket.proxy.seen if line.startswith("GET") and ".png" in line]
    assert len(gets) == len(list((open_bucket.data / "target").rglob("*.png"))), "each image once"


@pytest.mark.parametrize("change", ["replaced", "added", "removed"])
def test_data_that_changed_since_are_an_error_that_says_so(open_bucket: Embedded, bucket: Bucket, change: str):
    job_id = submitted(open_bucket, bucket)
    key = bucket.objects()[5]
    assert key.startswith("data/")
    target = next(key for key in bucket.objects() if key.startswith("data/target/"))
    if change == "removed":
        bucket.client.delete_object(Bucket=bucket.name, Key=target)
    else:
        bucket.client.put_object(Bucket=bucket.name, Key=target if change == "replaced" else "data/target/new.png", Body=b"new")
    drain(open_bucket.process())
    problem = open_bucket.job(job_id).error
    assert (problem["code"], problem["pointer"]) == ("reference_changed", "/data/target/uri")
    assert entries(open_bucket) == [] == leftovers(open_bucket)


def test_an_object_that_is_replaced_between_the_listing_and_its_reading_is_seen(open_bucket: Embedded, bucket: Bucket):
    job_id = submitted(open_bucket, bucket)
    target = next(key for key in bucket.objects() if key.startswith("data/target/"))

    def replaced(method: str, path: str) -> bool:
        if method == "GET" and ".png" in path:
            bucket.client.put_object(Bucket=bucket.name, Key=target, Body=b"new")
        return False

    bucket.proxy.fails = replaced
    drain(open_bucket.process())
    assert open_bucket.job(job_id).error["code"] == "reference_changed"


def test_a_store_that_is_away_for_a_moment_costs_nothing(open_bucket: Embedded, bucket: Bucket):
    job_id = submitted(open_bucket, bucket)
    failed: list[str] = []

    def fails(method: str, path: str) -> bool:
        """botocore itself tries thrice: beyond that it is our turn."""
        if ".png" in path and len(failed) < 40:
            failed.append(path)
            return True
        return False

    bucket.proxy.fails = fails
    drain(open_bucket.process(**TOO_SMALL))
    assert began(open_bucket, job_id), open_bucket.story(job_id)
    assert len(failed) == 40


def test_a_store_that_stays_away_fails_the_job(open_bucket: Embedded, bucket: Bucket):
    job_id = submitted(open_bucket, bucket)
    bucket.proxy.mode = "500"
    drain(open_bucket.process())
    assert open_bucket.job(job_id).error["code"] == "reference_away"
    bucket.proxy.obey()


def test_a_worker_that_stops_while_it_fetches_from_a_bucket_hands_the_job_back(open_bucket: Embedded, bucket: Bucket):
    job_id = submitted(open_bucket, bucket)
    worker = open_bucket.process()
    bucket.proxy.fails = lambda _method, path: ".png" in path

    def stop() -> None:
        wait_for(lambda: any(".png" in line for line in bucket.proxy.seen), "the fetch")
        worker.stop_asked = True

    with meanwhile(stop):
        drain(worker)
    assert open_bucket.job(job_id).status == "queued"
    assert entries(open_bucket) == [] == leftovers(open_bucket)
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in open_bucket.story(job_id)
