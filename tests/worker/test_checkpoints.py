"""Checkpoints to the blob store and back, over a folder and over a bucket."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from app.blobs import Blobs, LocalBlobs
from app.jobs import checkpoints as kept_checkpoints
from app.jobs.lifecycle import Claim
from tests.s3 import Bucket
from tests.worker.embedded import wait_for
from worker import checkpoints, workspace
from worker.checkpoints import Sender
from worker.workspace import Workspace

FIRST, SECOND, THIRD = (Claim("job_1", "tenant_1", attempt, "worker_1") for attempt in (1, 2, 3))


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return LocalBlobs(tmp_path / "blobs")
    return request.getfixturevalue("bucket").blobs(tmp_path / "aside")


def space_of(folder: Path, claim: Claim) -> Workspace:
    return workspace.prepare(folder / "work", claim.job_id, claim.attempt)


def write(space: Workspace, content: bytes) -> None:
    """As the engine does: aside, then in its place."""
    aside = space.out / "checkpoint.pt.partial"
    aside.write_bytes(content)
    aside.replace(space.checkpoint)


def sent(blobs: Blobs, claim: Claim, space: Workspace, *contents: bytes) -> None:
    sender = Sender(blobs, claim, space)
    for content in contents:
        write(space, content)
        sender.written()
        assert sender.up_to_date(20)
    sender.close(20)


def kept(blobs: Blobs) -> list[tuple[int, str]]:
    return [(one.attempt, one.sha256) for one in kept_checkpoints.kept(blobs, "tenant_1", "job_1")]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetched(blobs: Blobs, claim: Claim, folder: Path) -> tuple[bytes | None, list[str]]:
    """What this attempt finds on another machine, and the codes of its warnings."""
    space = space_of(folder, claim)
    here = workspace.newest_checkpoint(folder / "work", claim.job_id, claim.attempt)
    warnings = checkpoints.fetch(blobs, claim, space, newer_than=here)
    assert sorted(path.name for path in space.folder.iterdir()) == ["out", "tmp"], "nothing stays beside it"
    return space.checkpoint.read_bytes() if space.checkpoint.exists() else None, [warning.code for warning in warnings]


def test_the_newest_is_kept_alone_and_found_on_another_machine(blobs: Blobs, tmp_path: Path):
    space = space_of(tmp_path, FIRST)
    sent(blobs, FIRST, space, b"step 1", b"step 2", b"step 2", b"step 3")
    assert kept(blobs) == [(1, sha256(b"step 3"))]
    assert sorted(path.name for path in space.folder.iterdir()) == ["out", "tmp"]
    assert fetched(blobs, SECOND, tmp_path / "elsewhere") == (b"step 3", [])
    assert fetched(blobs, FIRST, tmp_path / "elsewhere")[0] is None, "an attempt does not follow itself"
    kept_checkpoints.remove(blobs, "tenant_1", "job_1")
    assert kept(blobs) == []
    assert fetched(blobs, SECOND, tmp_path / "third") == (None, [])


def test_a_writer_that_is_faster_than_the_store_loses_nothing_but_what_is_old(blobs: Blobs, tmp_path: Path):
    space = space_of(tmp_path, FIRST)
    sender = Sender(blobs, FIRST, space)
    for step in range(60):
        write(space, b"step %d" % step)
        sender.written()
    assert sender.up_to_date(20)
    sender.close(20)
    assert kept(blobs) == [(1, sha256(b"step 59"))]


def test_a_newer_attempts_is_taken_and_a_stale_ones_takes_no_others_place(blobs: Blobs, tmp_path: Path):
    stale, current = space_of(tmp_path, FIRST), space_of(tmp_path / "elsewhere", SECOND)
    sent(blobs, FIRST, stale, b"step 1")
    sent(blobs, SECOND, current, b"step 7")
    sent(blobs, FIRST, stale, b"step 2", b"step 3", b"step 4")
    assert kept(blobs)[0] == (2, sha256(b"step 7"))
    assert fetched(blobs, THIRD, tmp_path) == (b"step 7", []), "though this machine has one of attempt 1"


def test_one_of_this_machine_that_is_as_new_stays(blobs: Blobs, tmp_path: Path):
    space = space_of(tmp_path, FIRST)
    sent(blobs, FIRST, space, b"step 1")
    write(space, b"step 2, which was not copied any more")
    assert fetched(blobs, SECOND, tmp_path) == (b"step 2, which was not copied any more", [])


@pytest.mark.parametrize("older", [True, False])
def test_a_damaged_one_is_deleted_and_told_and_the_one_before_it_taken(blobs: Blobs, tmp_path: Path, older: bool):
    if older:
        sent(blobs, FIRST, space_of(tmp_path, FIRST), b"step 1")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"not what was kept")
    blobs.put(damaged, kept_checkpoints.key("tenant_1", "job_1", 2, 1, sha256(b"what was kept")))
    blobs.put(damaged, f"checkpoints/tenant_1/job_1/{'x' * 10}")
    assert fetched(blobs, THIRD, tmp_path / "elsewhere") == (b"step 1" if older else None, ["checkpoint_damaged"])
    assert kept(blobs) == ([(1, sha256(b"step 1"))] if older else [])


def test_a_link_is_not_followed(blobs: Blobs, tmp_path: Path):
    (tmp_path / "secret").write_text("of the worker")
    space = space_of(tmp_path, FIRST)
    space.checkpoint.symlink_to(tmp_path / "secret")
    sender = Sender(blobs, FIRST, space)
    sender.written()
    assert not sender.up_to_date(0.5)
    sender.close(20)
    assert kept(blobs) == []


def test_a_store_that_is_away_is_tried_again_and_harms_nobody(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("worker.checkpoints.AGAIN_S", 0.1)
    blobs = bucket.blobs(tmp_path / "aside")
    space = space_of(tmp_path, FIRST)
    sender = Sender(blobs, FIRST, space)
    bucket.proxy.mode = "500"
    write(space, b"step 1")
    sender.written()
    wait_for(lambda: len(bucket.proxy.seen) > 3, "a second try")
    assert not sender.up_to_date(0)
    bucket.proxy.obey()
    assert sender.up_to_date(20)
    sender.close(20)
    assert kept(blobs) == [(1, sha256(b"step 1"))]
    assert "a checkpoint was not copied to the blob store" in capsys.readouterr().out
