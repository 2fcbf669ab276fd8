"""What of a child's files may be published, and what happens to a job just then."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.blobs import LocalBlobs
from app.database import EMBEDDED_TENANT, Database
from app.errors import Problem
from app.jobs import service
from app.jobs.lifecycle import Claim
from app.jobs.table import Job
from tests.worker.embedded import QUICK, Embedded
from worker import publication
from worker.adaptation.events import OutputFile, Result
from worker.draining import drain

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


class Interrupted(LocalBlobs):
    """Real blobs; something happens to the job while the first is copied in."""

    def __init__(self, folder: Path, happens: Callable[[], object]) -> None:
        super().__init__(folder)
        self.happens: Callable[[], object] | None = happens

    def put(self, source: Path, key: str) -> tuple[int, str]:
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        return super().put(source, key)


def test_a_job_cancelled_while_it_is_published_leaves_no_blob(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process()
    worker.blobs = Interrupted(embedded.blobs.folder, lambda: service.cancel(embedded.db, EMBEDDED_TENANT, job_id))
    drain(worker)
    assert embedded.job(job_id).status == "cancelled"
    assert embedded.published(job_id) == {} and embedded.kept(job_id) == []


def test_a_job_lost_while_it_is_published_leaves_no_blob(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)

    def take_over() -> None:
        with embedded.db.write() as session:
            session.execute(sa.update(Job).where(Job.id == job_id).values(attempt=2, worker_id="worker_other"))

    worker = embedded.process()
    worker.blobs = Interrupted(embedded.blobs.folder, take_over)
    assert drain(worker) == 1
    assert (embedded.job(job_id).status, embedded.job(job_id).attempt) == ("running", 2)
    assert embedded.published(job_id) == {} and embedded.kept(job_id) == []


class Forgetful(Database):
    """A real database whose answer to the commit that publishes is lost on the way."""

    forgot = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        with super().write() as session:
            yield session
        with self.read() as session:
            published = session.scalar(sa.select(sa.func.count()).select_from(Artifact))
        if published and not self.forgot:
            self.forgot = True
            raise OperationalError("COMMIT", {}, ConnectionError("the server closed the connection"))


def test_a_publication_whose_commit_got_no_answer_stands(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process()
    worker.db = Forgetful(embedded.settings.sqlalchemy_url)
    drain(worker)
    worker.db.dispose()
    assert worker.db.forgot
    assert embedded.job(job_id).status == "succeeded"
    assert len(embedded.published(job_id)) == len(embedded.kept(job_id)) > 3
