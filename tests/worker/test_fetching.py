"""Jobs whose data lie elsewhere: brought to the worker before the job's process starts, and seen by it as folders."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from app.blobs import Reading
from app.database import EMBEDDED_TENANT
from app.datasets import service as datasets
from app.datasets.table import Dataset
from app.jobs import service
from tests.archives import of_folder
from tests.worker.embedded import QUICK, TOO_SMALL, Embedded, began, meanwhile, undisturbed, wait_for
from worker import housekeeping
from worker.cache import Cache, Room
from worker.draining import drain
from worker.leftovers import remove_orphaned_blobs

SCALING = {"kind": "millimetres", "high": 5000}


def uploaded(embedded: Embedded, format: str = "zip") -> Dataset:
    """All of the small data as one dataset."""
    staged = embedded.blobs.stage()
    staged.write(of_folder(format, embedded.data))
    return datasets.store(embedded.db, embedded.blobs, embedded.settings, EMBEDDED_TENANT, None, staged)[0]


def naming(dataset: Dataset, *sets: str) -> dict[str, object]:
    given: dict[str, object] = {"target": {"uri": f"dataset://{dataset.id}/target", "scaling": SCALING}}
    if "pairs" in sets:
        given["pairs"] = {"uri": f"dataset://{dataset.id}/pairs", "scaling": SCALING}
    if "evaluation" in sets:
        given["evaluation"] = {"uri": f"dataset://{dataset.id}/test"}
    return {"data": given}


def entries(embedded: Embedded) -> list[str]:
    folder = embedded.settings.cache_folder / "entries"
    return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []


def test_a_job_of_an_uploaded_dataset_ends_as_one_of_the_same_files_on_disk(embedded: Embedded):
    dataset = uploaded(embedded, "tar.gz")
    sets = {"evaluation": {"uri": f"file://{embedded.data}/test"}}
    ours = embedded.submit(wake=False, **naming(dataset, "pairs", "evaluation"))
    assert drain(embedded.process()) == 1
    assert embedded.job(ours).status == "succeeded", embedded.story(ours)
    mine, on_disk = embedded.published(ours), undisturbed(embedded, embedded.submit(wake=False, data=sets))
    assert mine["model.safetensors"] == on_disk["model.safetensors"]
    told = json.loads(mine["report.json"])["references"]
    version = f"sha256:{dataset.sha256}"
    assert told == [
        {"set": name, "uri": f"dataset://{dataset.id}/{folder}", "version": version}
        for name, folder in (("target", "target"), ("pairs", "pairs"), ("evaluation", "test"))
    ]
    assert version in mine["report.html"].decode()
    assert json.loads(on_disk["report.json"])["references"][0]["version"] is None
    assert entries(embedded) == [f"archive-{dataset.sha256}"], "three references into one archive are fetched once"
    assert "fetching dataset://" in embedded.story(ours)


def test_the_next_job_finds_it_there(embedded: Embedded, monkeypatch: pytest.MonkeyPatch):
    dataset = uploaded(embedded)
    first = embedded.submit(wake=False, **naming(dataset), **QUICK)
    drain(embedded.process(**TOO_SMALL))
    assert began(embedded, first)
    read = embedded.blobs.read

    def refusing(key: str, start: int, end: int) -> Reading:
        assert key != dataset.blob_key, "it is fetched again"
        return read(key, start, end)

    monkeypatch.setattr(embedded.blobs, "read", refusing)
    second = embedded.submit(wake=False, **naming(dataset), **(QUICK | {"seed": 1}))
    drain(embedded.process())
    assert embedded.job(second).status == "succeeded"


def test_a_reference_opens_nothing_else(embedded: Embedded):
    """The pairs lie on the disk, below what is no root of this worker."""
    job_id = embedded.submit(wake=False, **naming(uploaded(embedded)), **QUICK)
    drain(embedded.process(data_roots=()))
    problem = embedded.job(job_id).error
    assert (problem["code"], problem["pointer"]) == ("reference_outside_roots", "/data/pairs/uri")


def test_data_that_exceed_the_cache_fail_the_job(embedded: Embedded):
    job_id = embedded.submit(wake=False, **naming(uploaded(embedded)), **QUICK)
    drain(embedded.process(cache_bytes=1000))
    job = embedded.job(job_id)
    assert (job.status, job.error["code"], job.error["limit"]) == ("failed", "cache_full", 1000)
    assert entries(embedded) == []


def test_an_archive_that_is_gone_or_not_what_it_was_fails_the_job(embedded: Embedded):
    dataset = uploaded(embedded)
    path = embedded.blobs.path(dataset.blob_key)
    content, worker = path.read_bytes(), embedded.process()
    damaged = embedded.submit(wake=False, **naming(dataset), **QUICK)
    path.write_bytes(content[:-1] + b"?")
    drain(worker)
    missing = embedded.submit(wake=False, **naming(dataset), **QUICK)
    path.unlink()
    drain(worker)
    errors = [(embedded.job(one).error["code"], embedded.job(one).error["pointer"]) for one in (damaged, missing)]
    assert errors == [("archive_damaged", "/data/target/uri"), ("reference_missing", "/data/target/uri")]
    path.write_bytes(content)


class Slow:
    """A blob store that gives a piece of a dataset's archive only when it is told to."""

    def __init__(self, embedded: Embedded, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        self.go, self.pieces = threading.Event(), 0
        read, slow = embedded.blobs.read, self

        class Waiting:
            def __init__(self, inner: Reading) -> None:
                self.inner = inner

            def __iter__(self):
                for piece in self.inner:
                    for place in range(0, len(piece), 1000):
                        slow.pieces += 1
                        slow.go.wait(0.05)
                        yield piece[place : place + 1000]

            def close(self) -> None:
                self.inner.close()

        def reading(wanted: str, start: int, end: int) -> Reading:
            found = read(wanted, start, end)
            return Waiting(found) if wanted == key else found

        monkeypatch.setattr(embedded.blobs, "read", reading)


@pytest.fixture
def slow(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Slow]:
    dataset = uploaded(embedded)
    return embedded.submit(wake=False, **naming(dataset), **QUICK), Slow(embedded, monkeypatch, dataset.blob_key)


def leftovers(embedded: Embedded) -> list[Path]:
    return list((embedded.settings.cache_folder / "aside").iterdir())


def test_the_lease_is_renewed_while_it_fetches(embedded: Embedded, slow: tuple[str, Slow]):
    job_id, store = slow

    def look() -> None:
        wait_for(lambda: store.pieces, "the fetch")
        first = embedded.job(job_id).lease_expires_at
        wait_for(lambda: embedded.job(job_id).lease_expires_at > first, "a renewal", 10)
        housekeeping.expire_leases(embedded.process())
        assert embedded.job(job_id).status == "running" and entries(embedded) == []
        store.go.set()

    with meanwhile(look):
        drain(embedded.process(**TOO_SMALL))
    assert began(embedded, job_id) and embedded.job(job_id).attempt == 1


def test_it_is_cancelled_while_it_fetches(embedded: Embedded, slow: tuple[str, Slow]):
    job_id, store = slow

    def cancel() -> None:
        wait_for(lambda: store.pieces, "the fetch")
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(embedded.process())
    assert embedded.job(job_id).status == "cancelled"
    assert entries(embedded) == [] == leftovers(embedded)


def test_a_worker_that_stops_while_it_fetches_hands_the_job_back(embedded: Embedded, slow: tuple[str, Slow]):
    job_id, store = slow
    worker = embedded.process()

    def stop() -> None:
        wait_for(lambda: store.pieces, "the fetch")
        worker.stop_asked = True

    with meanwhile(stop):
        drain(worker)
    assert (embedded.job(job_id).status, embedded.job(job_id).lost_attempts) == ("queued", 0)
    assert entries(embedded) == [] == leftovers(embedded)
    store.go.set()
    drain(embedded.process(**TOO_SMALL))
    assert began(embedded, job_id) and embedded.job(job_id).attempt == 2


def test_fetching_counts_against_the_time_limit(embedded: Embedded, slow: tuple[str, Slow]):
    drain(embedded.process(job_time_limit_s=0.5))
    assert embedded.job(slow[0]).error["code"] == "time_limit"
    assert entries(embedded) == [] == leftovers(embedded)


def test_it_waits_for_room_that_another_job_uses(embedded: Embedded, slow: tuple[str, Slow]):
    job_id, store = slow
    store.go.set()
    worker = embedded.process(cache_bytes=10_000_000, **TOO_SMALL)
    cache = Cache(worker.settings.cache_folder, 10_000_000)

    def much(room: Room) -> str:
        room.need(9_990_000)
        (room.files / "large").write_bytes(bytes(9_990_000))
        return "v"

    other = cache.hold("other", much, lambda: None)

    def let_go() -> None:
        wait_for(lambda: "waits for the cache" in embedded.story(job_id), "its words", 30)
        assert embedded.job(job_id).status == "running"
        other.close()

    with meanwhile(let_go):
        drain(worker)
    assert began(embedded, job_id)
    assert "other" not in entries(embedded)


def test_a_worker_that_is_killed_while_it_fetches_costs_an_attempt_and_leaves_nothing(embedded: Embedded):
    """A real worker, and a key lock that a killed process no longer has."""
    dataset = uploaded(embedded)
    job_id = embedded.submit(wake=False, **naming(dataset), **QUICK)
    path = embedded.blobs.path(dataset.blob_key)
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)  # reading it hangs
    with embedded.worker() as worker:
        embedded.wake(job_id)
        wait_for(lambda: leftovers(embedded) if (embedded.settings.cache_folder / "aside").is_dir() else [], "the fetch")
        worker.kill()
        worker.wait()
    path.unlink()
    path.write_bytes(content)
    with embedded.worker(**TOO_SMALL):
        job = embedded.until(job_id, "failed")
    assert began(embedded, job_id) and (job.attempt, job.lost_attempts) == (2, 1)
    assert entries(embedded) == [f"archive-{dataset.sha256}"]
    embedded.sweep()
    assert leftovers(embedded) == []


def test_the_sweep_keeps_the_blobs_of_datasets(embedded: Embedded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    dataset = uploaded(embedded)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    orphan = f"datasets/{EMBEDDED_TENANT}/dataset_gone"
    for key in (orphan, f"{orphan}.listing"):
        embedded.blobs.put(file, key)
    monkeypatch.setattr("worker.leftovers.ORPHAN_S", -60)
    remove_orphaned_blobs(embedded.process())
    assert embedded.blobs.keys("datasets/") == [dataset.blob_key, dataset.listing_key]
