"""What the sweep removes, and what it must leave alone."""

from __future__ import annotations

import os
import re
import time
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.artifacts.table import Artifact
from app.blobs import ABANDONED_S
from app.database import EMBEDDED_TENANT
from app.jobs import lifecycle
from app.jobs.table import Job
from tests.worker.embedded import QUICK, Embedded
from worker import housekeeping, leftovers, workspace
from worker.draining import claim_next, drain


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_work_folders_go_with_their_jobs(embedded_both: Embedded):
    worker = embedded_both.process()
    over, deleted, waiting = (embedded_both.submit(wake=False, seed=n, **QUICK) for n in range(3))
    for job_id in (over, deleted, waiting):
        workspace.prepare(worker.settings.work_dir, job_id, 1)
    with embedded_both.db.write() as session:
        session.execute(sa.update(Job).where(Job.id == over).values(status="failed", attempt=1))
        session.execute(sa.delete(Job).where(Job.id == deleted))
    leftovers.remove_work_folders(worker)
    assert list(workspace.jobs_here(worker.settings.work_dir)) == [waiting]


def test_jobs_that_are_over_for_long_enough_go_with_all_that_is_theirs(embedded_both: Embedded):
    worker = embedded_both.process(keep_succeeded_s=3600, keep_failed_s=60)
    ids = [embedded_both.submit(wake=False, seed=n, **QUICK) for n in range(5)]
    old, young, failed, cancelled, waiting = ids
    key = f"jobs/{EMBEDDED_TENANT}/{old}/1/model.safetensors"
    worker.blobs.put(embedded_both.data / "source.safetensors", key)
    with embedded_both.db.write() as session:
        now = worker.db.now(session)
        for job_id, status, ago in (
            (old, "succeeded", 4000), (young, "succeeded", 3000), (failed, "failed", 61), (cancelled, "cancelled", 59),
        ):  # fmt: skip
            ended = now - timedelta(seconds=ago)
            session.execute(sa.update(Job).where(Job.id == job_id).values(status=status, finished_at=ended))
        values = {"name": "model.safetensors", "media_type": "x/y", "size": 1, "sha256": "0" * 64, "attempt": 1}
        session.add(Artifact(job_id=old, tenant_id=EMBEDDED_TENANT, blob_key=key, created_at=now, **values))
    leftovers.remove_old_jobs(embedded_both.process())
    with embedded_both.db.read() as session:
        assert set(session.scalars(sa.select(Job.id))) == set(ids), "by default all are kept"
    leftovers.remove_old_jobs(worker)
    with embedded_both.db.read() as session:
        assert set(session.scalars(sa.select(Job.id))) == {young, cancelled, waiting}
        assert session.scalar(sa.select(sa.func.count()).select_from(Artifact)) == 0
    assert embedded_both.kept(old) == []


def test_blobs_that_no_row_names_go_and_others_stay(embedded: Embedded):
    worker = embedded.process()
    job_id = embedded.submit(wake=False, **QUICK)
    assert drain(worker) == 1
    named = sorted(embedded.blobs.keys_older_than(-60))
    assert len(named) > 3
    for key in ("jobs/tenant_embedded/job_1/1/model.json", "source_models/tenant_embedded/model_1", "source_models/young"):
        with embedded.blobs.stage() as staged:
            staged.write(b"x")
            embedded.blobs.keep(staged, key)
    for path in embedded.blobs.kept.rglob("*"):
        if path.is_file() and path.name != "young":
            age(path, leftovers.ORPHAN_S + 60)
    abandoned, fresh = embedded.blobs.aside / "abandoned", embedded.blobs.aside / "fresh"
    message = embedded.settings.broker_dir / "messages/1_x.jobs.partial"
    for path in (abandoned, fresh, message):
        path.write_bytes(b"half")
    for path in (abandoned, message):
        age(path, ABANDONED_S + 60)
    housekeeping.sweep(worker)
    assert not message.exists()
    assert sorted(embedded.blobs.keys_older_than(-60)) == sorted([*named, "source_models/young"])
    assert [path.name for path in embedded.blobs.aside.iterdir()] == ["fresh"]
    assert embedded.published(job_id)
    fresh.unlink()


@pytest.mark.postgres
@pytest.mark.parametrize("embedded_both", ["postgres"], indirect=True)
def test_a_model_that_is_published_while_orphans_are_looked_for_stays(embedded_both: Embedded):
    """Its blob is an hour old, as after a database was away; each look of the sweep is of its own moment there."""
    worker = embedded_both.process()
    embedded_both.submit(wake=False, **QUICK)
    held = claim_next(worker)
    assert held is not None
    key = f"jobs/{EMBEDDED_TENANT}/{held.job_id}/{held.attempt}/model.json"
    with embedded_both.blobs.stage() as staged:
        staged.write(b"x")
        embedded_both.blobs.keep(staged, key)
    for path in embedded_both.blobs.kept.rglob("*"):
        age(path, leftovers.ORPHAN_S + 60)
    artifact = {"name": "model.json", "media_type": "x/y", "size": 1, "sha256": "0" * 64, "blob_key": key}
    published = []

    def publish(_connection, _cursor, statement: str, *_rest):
        if not published and re.search(r"FROM (jobs|artifacts)\b", statement):
            published.append(statement)
            with embedded_both.db.write() as session:
                now = embedded_both.db.now(session)
                assert lifecycle.succeed(session, held, result={}, artifacts=[artifact], now=now) is not None

    sa.event.listen(worker.db.engine, "after_cursor_execute", publish)
    leftovers.remove_orphaned_blobs(worker)
    sa.event.remove(worker.db.engine, "after_cursor_execute", publish)
    assert published
    assert key in list(embedded_both.blobs.keys_older_than(-60))
