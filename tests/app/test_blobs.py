"""What both stores do: one suite over a folder and over a bucket of a real S3-speaking server."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from app.blobs import Blobs, LocalBlobs, discard, open_blobs
from app.settings import Settings

KEY = "jobs/tenant_a/job_a/1/model.safetensors"
CONTENT = bytes(range(256)) * 4000


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        made: Blobs = LocalBlobs(tmp_path / "blobs")
    else:
        made = request.getfixturevalue("bucket").blobs(tmp_path / "aside")
    made.prepare()
    return made


def kept(blobs: Blobs, key: str = KEY, content: bytes = CONTENT) -> str:
    """The content's sha256, as the store counted it."""
    with blobs.stage() as staged:
        for start in range(0, len(content), 100_000):
            staged.write(content[start : start + 100_000])
        blobs.keep(staged, key)
        assert staged.size == len(content)
        return staged.sha256


def read(blobs: Blobs, start: int, end: int, key: str = KEY) -> bytes:
    with closing(blobs.read(key, start, end)) as reading:
        return b"".join(reading)


def test_what_is_kept_is_read_whole_and_in_part(blobs: Blobs, tmp_path: Path):
    assert kept(blobs) == hashlib.sha256(CONTENT).hexdigest()
    assert list(blobs.aside.iterdir()) == [], "nothing stays aside"
    size = len(CONTENT)
    assert read(blobs, 0, size) == CONTENT
    assert read(blobs, 5, 300_001) == CONTENT[5:300_001]
    assert read(blobs, size - 1, size) == CONTENT[-1:]
    assert read(blobs, 7, 7) == b""
    assert blobs.local(KEY, tmp_path / "here").read_bytes() == CONTENT


def test_a_blob_of_nothing(blobs: Blobs, tmp_path: Path):
    kept(blobs, content=b"")
    assert read(blobs, 0, 0) == b""
    assert blobs.local(KEY, tmp_path / "here").read_bytes() == b""


def test_a_file_that_is_not_kept_is_nowhere(blobs: Blobs):
    with blobs.stage() as staged:
        staged.write(CONTENT)
    assert list(blobs.aside.iterdir()) == [] and blobs.keys("jobs/") == []


def test_a_reader_that_stops_early_harms_nobody(blobs: Blobs):
    kept(blobs)
    reading = blobs.read(KEY, 0, len(CONTENT))
    assert next(iter(reading)) == CONTENT[: 1 << 18]
    reading.close()
    reading.close()


def test_a_file_is_put_or_adopted_and_stays_its_owners(blobs: Blobs, tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    assert blobs.put(source, KEY) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    blobs.adopt(source, "checkpoints/tenant_a/job_a/1")
    source.unlink()
    assert read(blobs, 0, len(CONTENT)) == read(blobs, 0, len(CONTENT), "checkpoints/tenant_a/job_a/1") == CONTENT


def test_a_later_blob_takes_the_place_of_the_former(blobs: Blobs):
    kept(blobs)
    kept(blobs, content=b"new")
    assert read(blobs, 0, 3) == b"new"


def test_what_is_not_there_is_told_before_the_first_byte(blobs: Blobs, tmp_path: Path):
    for call in (lambda: blobs.read(KEY, 0, 1), lambda: blobs.local(KEY, tmp_path / "here")):
        with pytest.raises(FileNotFoundError):
            call()
    assert not (tmp_path / "here").exists()


def test_deleting_twice_is_deleting(blobs: Blobs):
    kept(blobs)
    kept(blobs, "jobs/tenant_a/job_b/1/x", b"x")
    discard(blobs, [KEY, KEY, "jobs/tenant_a/job_c/1/never-was"])
    assert blobs.keys("jobs/") == ["jobs/tenant_a/job_b/1/x"]


def test_keys_are_listed_by_prefix_and_by_age(blobs: Blobs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")  # pages of two
    names = [f"jobs/tenant_a/job_{n}/1/x" for n in range(5)]
    for key in [*names, "jobs/tenant_a/job_44/1/x", "source_models/tenant_a/model_a"]:
        kept(blobs, key, b"x")
    assert blobs.keys("jobs/tenant_a/job_4/") == ["jobs/tenant_a/job_4/1/x"]
    assert blobs.keys("jobs/") == sorted([*names, "jobs/tenant_a/job_44/1/x"])
    assert blobs.keys("nothing/") == []
    assert len(list(blobs.keys_older_than(-60))) == 7
    assert list(blobs.keys_older_than(60)) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a b", "a\n", "a\0", "ä"])
def test_a_key_is_a_plain_name(blobs: Blobs, key: str, tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: kept(blobs, key),
        lambda: blobs.put(source, key),
        lambda: blobs.adopt(source, key),
        lambda: blobs.read(key, 0, 1),
        lambda: blobs.local(key, tmp_path / "here"),
        lambda: blobs.delete(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a blob key"):
            call()


def test_only_old_files_are_cleared(blobs: Blobs):
    old, fresh = blobs.aside / "old", blobs.aside / "fresh"
    for path in (old, fresh):
        path.write_bytes(b"half")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    assert blobs.clear_aside(3600) == 1
    assert list(blobs.aside.iterdir()) == [fresh]


def test_a_store_that_works_is_found_to_work(blobs: Blobs):
    blobs.check()
    blobs.check()
    assert list(blobs.keys_older_than(-60)) == []


def test_a_checkpoint_is_adopted_by_a_link_and_copied_where_there_can_be_none(tmp_path: Path):
    blobs, source = LocalBlobs(tmp_path / "blobs"), tmp_path / "checkpoint.pt"
    source.write_bytes(CONTENT)
    blobs.adopt(source, KEY)
    assert blobs.path(KEY).samefile(source)
    elsewhere = Path("/dev/shm") / f"{tmp_path.name}-{os.getpid()}"
    if elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system alone")
    elsewhere.write_bytes(CONTENT)
    try:
        blobs.adopt(elsewhere, "jobs/copied")
    finally:
        elsewhere.unlink()
    assert blobs.path("jobs/copied").read_bytes() == CONTENT


def test_the_settings_name_the_store(tmp_path: Path, bucket):
    assert isinstance(open_blobs(Settings(data_dir=tmp_path)), LocalBlobs)
    chosen = open_blobs(Settings(data_dir=tmp_path, blobs_url=f"s3://{bucket.name}/a/b/", s3_endpoint_url=bucket.server))
    chosen.prepare()
    kept(chosen)
    assert bucket.objects() == [f"a/b/{KEY}"]
    bare = open_blobs(Settings(data_dir=tmp_path, blobs_url=f"s3://{bucket.name}", s3_endpoint_url=bucket.server))
    assert bare.keys("a/") == [f"a/b/{KEY}"]


@pytest.mark.parametrize(
    "wrong", [{"blobs_url": "bucket"}, {"blobs_url": "s3://"}, {"blobs_url": "s3://a/../b"}, {"s3_endpoint_url": "minio:9000"}]
)
def test_an_address_that_is_none_is_refused_at_the_start(wrong: dict[str, str]):
    with pytest.raises(ValueError, match="must"):
        Settings(**wrong)
