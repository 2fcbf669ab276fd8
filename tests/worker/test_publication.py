"""What of a child's files may be published."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from app.blobs import LocalBlobs
from app.errors import Problem
from app.jobs.lifecycle import Claim
from worker import publication
from worker.adaptation.events import OutputFile, Result

CLAIM = Claim("job_1", "tenant_1", 2, "worker_1")


def result(*names: str, media_type: str = "application/json") -> Result:
    return Result(artifacts=[OutputFile(name=name, media_type=media_type) for name in names], summary={})


def test_the_listed_files_are_kept_under_their_attempt_and_no_others(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "unlisted").write_text("secret")
    blobs = LocalBlobs(tmp_path / "blobs")
    rows = publication.keep(blobs, publication.files(result("model.json"), tmp_path, CLAIM))
    assert [(row["name"], row["size"], row["blob_key"]) for row in rows] == [
        ("model.json", 2, "jobs/tenant_1/job_1/2/model.json")
    ]
    assert [path.name for path in (tmp_path / "blobs/kept").rglob("*") if path.is_file()] == ["model.json"]


@pytest.mark.parametrize(
    "listed",
    [
        result("../secret"), result("/etc/passwd"), result("a/b"), result(".hidden"), result(""), result("x\n"), result("link"),
        result("folder"), result("missing"), result("fine", "fine"), result(), result("x" * 201), result("fine", media_type="text/html\r\nX: y"),
    ],
)  # fmt: skip
def test_a_result_that_does_not_hold_publishes_nothing(tmp_path, listed):
    (tmp_path / "fine").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(Problem) as raised:
        publication.files(listed, tmp_path, CLAIM)
    assert raised.value.code == "child_died"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")
def test_a_full_disk_is_told_as_one_and_nothing_is_left(tmp_path):
    disk: Path = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    try:
        (tmp_path / "small").write_bytes(bytes(1000))
        (tmp_path / "large").write_bytes(os.urandom(2**19))
        blobs = LocalBlobs(disk / "blobs")
        with pytest.raises(Problem) as raised:
            publication.keep(blobs, publication.files(result("small", "large"), tmp_path, CLAIM))
        assert raised.value.code == "disk_full"
        assert [path for path in disk.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
