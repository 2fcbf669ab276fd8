"""One attempt, from its claim to its end, with the real engine in a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import timm
import torch
from safetensors.torch import save
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import schema
from app.artifacts.table import Artifact
from app.blobs import LocalBlobs
from app.database import EMBEDDED_TENANT, Database
from app.jobs import queries, service
from app.jobs.table import Job
from app.source_models import service as source_models
from app.source_models.table import SourceModel
from app.spec import SourceModelDescription
from tests.adaptation.conftest import CLASSES, SIZE
from tests.conftest import POSTGRES
from tests.servers import Disk, Postgres, postgres
from tests.worker.conftest import embedded_in
from tests.worker.embedded import ENDLESS, QUICK, Embedded, child_of, gone, processes_that_name, wait_for
from worker import housekeeping, supervisor, workspace
from worker.draining import claim_next, drain
from worker.process import WorkerProcess


@contextmanager
def meanwhile(step: Callable[[], None]) -> Iterator[None]:
    """Runs the step beside the supervisor, which has this thread: a child is tied to the thread that started it."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - told below, in the test's own thread
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def counted(worker: WorkerProcess, name: str, **labels: str) -> float | None:
    return worker.metrics.registry.get_sample_value(f"modalbridge_worker_{name}_total", labels)


def test_a_job_from_claim_to_published_model(embedded_both: Embedded):
    job_id = embedded_both.submit(wake=False, data=evaluated(embedded_both))
    assert drain(embedded_both.process()) == 1
    job = embedded_both.job(job_id)
    assert job.status == "succeeded", job.error
    assert job.phase is None and job.progress is None and job.worker_id is None
    assert job.result["verdict"]
    assert job.result["accuracy"]["images"] == 36
    published = embedded_both.published(job_id)
    named = {"model.safetensors", "model.json", "report.html", "report.json", "metrics.json", "pictures.json", "pictures.webp"}
    assert named <= set(published)
    assert embedded_both.kept(job_id) == sorted(f"jobs/{EMBEDDED_TENANT}/{job_id}/1/{name}" for name in published)
    kinds = [event.kind for event in embedded_both.events(job_id)]
    assert kinds[:3] == ["state", "state", "started"] and kinds[-1] == "state"
    assert {"phase", "data", "checkpoint"} <= set(kinds)
    phases = [event.message for event in embedded_both.events(job_id, "phase")]
    assert phases == ["preparing", "bridging", "transferring", "evaluating", "publishing"]
    assert [event.seq for event in embedded_both.events(job_id)] == list(range(1, len(kinds) + 1))
    with embedded_both.db.read() as session:
        series = {
            point.series
            for point in queries.metrics_after(session, EMBEDDED_TENANT, job_id, series=None, after=None, limit=10_000)
        }
    assert series == set(json.loads(published["metrics.json"])["series"])
    assert processes_that_name(job_id) == []


def evaluated(embedded: Embedded) -> dict[str, object]:
    scaling = {"kind": "millimetres", "high": 5000}
    return {
        "evaluation": {"uri": f"file://{embedded.data}/test"},
        "target": {"uri": f"file://{embedded.data}/target", "scaling": scaling},
        "pairs": {"uri": f"file://{embedded.data}/pairs", "scaling": scaling},
    }


def test_a_job_of_several_source_models(embedded_both: Embedded):
    torch.manual_seed(1)
    weights = save(timm.create_model("test_efficientnet", num_classes=len(CLASSES)).state_dict())
    description = SourceModelDescription(architecture="timm/test_efficientnet", classes=CLASSES, input={"size": SIZE})
    with embedded_both.blobs.stage() as staged:
        staged.write(weights)
        second, _ = source_models.store(
            embedded_both.db, embedded_both.blobs, embedded_both.settings, EMBEDDED_TENANT, description, staged
        )
    job_id = embedded_both.submit(wake=False, further_source_models=[{"id": second.id}], **QUICK)
    assert drain(embedded_both.process()) == 1
    assert embedded_both.job(job_id).status == "succeeded", embedded_both.story(job_id)
    card = json.loads(embedded_both.published(job_id)["model.json"])
    assert [member["architecture"] for member in card["members"]] == ["timm/test_resnet", "timm/test_efficientnet"]


def test_what_the_engine_finds_wrong_ends_the_job_with_its_code(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    with embedded.db.write() as session:
        description = session.scalar(sa.select(SourceModel.description))
        session.execute(sa.update(SourceModel).values(description=description | {"architecture": "timm/test_vit"}))
    drain(embedded.process())
    job = embedded.job(job_id)
    assert (job.status, job.error["code"]) == ("failed", "source_model_mismatch")
    assert job.error["remedy"]
    assert embedded.published(job_id) == {} and embedded.kept(job_id) == []


def test_code_in_a_pickle_does_not_run(embedded: Embedded, tmp_path: Path):
    """The front end would not have taken this file: here it is put into its place behind its back."""
    marker = tmp_path / "the code ran"
    code = b"cos\nsystem\n(S'touch \"" + os.fsencode(marker) + b"\"'\ntR."
    job_id = embedded.submit(wake=False, **QUICK)
    with embedded.db.read() as session:
        embedded.blobs.path(session.scalar(sa.select(SourceModel.blob_key))).write_bytes(code)
    drain(embedded.process())
    job = embedded.job(job_id)
    assert job.status == "failed"
    assert job.error["code"] in ("unsafe_pickle", "source_model_format")
    assert not marker.exists()


def test_a_process_that_dies_without_a_result_fails_the_job_with_its_last_words(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    drain(embedded.process(child_memory_bytes=20 * 2**20))  # Python itself starts in this, and the engine does not
    job = embedded.job(job_id)
    assert (job.status, job.error["code"], job.lost_attempts) == ("failed", "child_died", 0)
    assert "Error" in embedded.events(job_id, "log")[-1].message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")
def test_a_disk_that_fills_up_while_the_process_works_is_told_though_nothing_can_be_printed(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    disk, worker = Disk(embedded.settings.work_dir), embedded.process()

    def fill() -> None:
        embedded.until_event(job_id, "checkpoint")
        disk.be_full(10, lambda: embedded.job(job_id).status == "running")

    with disk.mounted():
        with meanwhile(fill):
            assert supervisor.run(worker, claim_next(worker)).status == "queued"
        assert "disk is full" in embedded.events(job_id, "state")[-1].message
        (left,) = (path for path in (embedded.settings.work_dir / job_id).rglob("*") if path.is_file())
        assert left.name == "checkpoint.pt", "room is made, and the next attempt goes on from where this one was"
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)


def test_a_file_that_outgrows_its_limit_is_a_full_disk_on_which_nothing_of_the_attempt_stays(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process(child_file_bytes=50_000, max_lost_attempts=2)
    for expected in ("queued", "failed"):
        assert supervisor.run(worker, claim_next(worker)).status == expected
        assert list(workspace.jobs_here(embedded.settings.work_dir)) == []
    assert embedded.job(job_id).error["code"] == "disk_full"


def test_without_data_roots_nothing_may_be_read(embedded: Embedded):
    job_id = embedded.submit(wake=False, **QUICK)
    drain(embedded.process(data_roots=()))
    assert embedded.job(job_id).error["code"] == "reference_outside_roots"


def test_the_time_limit_ends_the_job(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker = embedded.process(job_time_limit_s=1.0)
    drain(worker)
    job = embedded.job(job_id)
    assert (job.status, job.error["code"]) == ("failed", "time_limit")
    assert counted(worker, "attempts", outcome="failed", cause="time_limit") == 1
    assert counted(worker, "child_exits", cause="ended_by_worker") == 1


def test_a_cancelled_job_is_stopped_and_publishes_nothing(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)

    def cancel() -> None:
        embedded.until_event(job_id, "phase", words="bridging")
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
        assert embedded.job(job_id).status in ("cancelling", "cancelled")

    with meanwhile(cancel):
        drain(embedded.process())
    job = embedded.job(job_id)
    assert job.status == "cancelled"
    assert embedded.events(job_id, "log")[-1].message.startswith("stopped at bridging"), "it was asked, not killed"
    assert embedded.kept(job_id) == []


def test_one_that_does_not_hear_is_killed_after_the_grace(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)

    def cancel() -> None:
        embedded.until_event(job_id, "phase", words="bridging")
        os.kill(child_of(embedded, job_id, 1), signal.SIGSTOP)
        service.cancel(embedded.db, EMBEDDED_TENANT, job_id)

    with meanwhile(cancel):
        drain(embedded.process(cancel_grace_s=0.5))
    assert embedded.job(job_id).status == "cancelled"
    assert "stopped at" not in embedded.story(job_id)


def test_a_worker_that_stops_hands_its_job_back(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker = embedded.process()

    def stop() -> None:
        embedded.until_event(job_id, "checkpoint")
        worker.stop_asked = True

    with meanwhile(stop):
        assert drain(worker) == 1
    job = embedded.job(job_id)
    assert (job.status, job.lost_attempts, job.worker_id) == ("queued", 0, None)
    assert "handed back" in embedded.story(job_id)
    assert counted(worker, "attempts", outcome="handed_back", cause="") == 1
    assert list(workspace.jobs_here(worker.settings.work_dir)) == [job_id], "its checkpoint stays for the next attempt"
    service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
    housekeeping.remove_work_folders(worker)


def test_a_process_that_is_killed_is_a_lost_attempt_and_three_are_the_end(embedded: Embedded):
    """As the kernel does where memory runs out."""
    job_id = embedded.submit(wake=False, **ENDLESS)

    def kill() -> None:
        for attempt in (1, 2, 3):
            embedded.until_event(job_id, "checkpoint", attempt=attempt)
            os.kill(child_of(embedded, job_id, attempt), signal.SIGKILL)

    worker = embedded.process()
    with meanwhile(kill):
        assert drain(worker) == 3
    job = embedded.job(job_id)
    assert (job.status, job.error["code"], job.lost_attempts, job.attempt) == ("failed", "attempts_exhausted", 3, 3)
    assert "SIGKILL" in job.error["detail"]
    resumed = [event.data["resumed_from"] for event in embedded.events(job_id, "started")]
    assert resumed[0] is None and resumed[1] is not None and resumed[2] is not None
    assert resumed[2][1] > resumed[1][1] > 0, "each went on where the last one was"
    assert counted(worker, "attempts", outcome="lost", cause="SIGKILL") == 3
    assert counted(worker, "child_exits", cause="SIGKILL") == 3


def test_an_attempt_that_has_lost_its_lease_writes_nothing_more(embedded: Embedded):
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker = embedded.process()
    claim = claim_next(worker)

    def take_over() -> None:
        embedded.until_event(job_id, "checkpoint")
        number = child_of(embedded, job_id, 1)
        with embedded.db.write() as session:
            session.execute(sa.update(Job).where(Job.id == job_id).values(attempt=2, worker_id="worker_other"))
        wait_for(lambda: gone(number), "the death of the stale process", 5)

    with meanwhile(take_over):
        assert supervisor.run(worker, claim) is None
    assert counted(worker, "attempts", outcome="lost", cause="lease") == 1
    story = embedded.story(job_id)
    time.sleep(0.2)
    assert embedded.story(job_id) == story
    job = embedded.job(job_id)
    assert (job.status, job.attempt, job.worker_id) == ("running", 2, "worker_other")
    assert embedded.kept(job_id) == []


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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk that is small enough to fill")
def test_a_worker_whose_disk_is_full_costs_a_job_attempts_and_no_more_than_it_may_lose(embedded: Embedded):
    kept, given_up = (embedded.submit(wake=False, seed=n, **QUICK) for n in range(2))
    folder = embedded.settings.work_dir
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "tmpfs", str(folder)], check=True)
    try:
        worker = embedded.process(lost_backoff_s=60)
        assert supervisor.run(worker, claim_next(worker)).status == "queued"
        drain(embedded.process())  # the other one, again and again
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    job = embedded.job(kept)
    assert (job.status, job.lost_attempts) == ("queued", 1) and "disk is full" in embedded.events(kept, "state")[-1].message
    job = embedded.job(given_up)
    assert (job.status, job.error["code"], job.lost_attempts) == ("failed", "disk_full", 3)
    with embedded.db.write() as session:
        session.execute(sa.update(Job).values(not_before=None))
    drain(embedded.process())
    assert embedded.job(kept).status == "succeeded"


@pytest.mark.postgres
def test_the_database_goes_away_for_a_while_and_the_job_goes_on(
    tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path
):
    url = new_database_url("postgres")
    name = sa.make_url(url).database
    administration = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def connections(allowed: bool) -> None:
        with administration.connect() as connection:
            connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {str(allowed).lower()}'))
            if not allowed:
                ours = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
                connection.execute(ours, {"name": name})

    with embedded_in(tmp_path, url, small_data) as embedded:
        job_id = embedded.submit(wake=False, settings={"bridging": {"steps": 60, "patience": 0}, "precision": "fp32"})

        def interrupt() -> None:
            embedded.until_event(job_id, "phase", words="bridging")
            number = child_of(embedded, job_id, 1)
            connections(False)
            time.sleep(4)  # longer than the lease, and than a tick by far
            connections(True)
            assert number

        worker = embedded.process()
        with meanwhile(interrupt):
            drain(worker)
        job = embedded.job(job_id)
        assert (job.status, job.attempt) == ("succeeded", 1)
        assert counted(worker, "lease_renewals_late") >= 1
        phases = [event.message for event in embedded.events(job_id, "phase")]
        assert phases == ["preparing", "bridging", "transferring", "evaluating", "publishing"], "nothing it said was lost"
    administration.dispose()


@pytest.fixture
def of_its_own(tmp_path: Path, small_data: Path) -> Iterator[tuple[Postgres, Embedded]]:
    """A server that may be frozen."""
    with postgres(tmp_path / "postgres.log") as server:
        db = Database(server.url)
        schema.upgrade(db)
        db.dispose()
        with embedded_in(tmp_path, server.url, small_data) as embedded:
            yield server, embedded


@pytest.mark.postgres
def test_the_database_hangs_for_a_while_and_the_job_goes_on(of_its_own: tuple[Postgres, Embedded]):
    server, embedded = of_its_own
    job_id = embedded.submit(wake=False, settings={"bridging": {"steps": 60, "patience": 0}, "precision": "fp32"})
    worker = embedded.process()

    def hang() -> None:
        embedded.until_event(job_id, "phase", words="bridging")
        with server.frozen():
            time.sleep(4)  # longer than the lease

    with meanwhile(hang):
        drain(worker)
    job = embedded.job(job_id)
    assert (job.status, job.attempt) == ("succeeded", 1)
    assert counted(worker, "lease_renewals_late") >= 1
    phases = [event.message for event in embedded.events(job_id, "phase")]
    assert phases == ["preparing", "bridging", "transferring", "evaluating", "publishing"], "each once, in their order"


@pytest.mark.postgres
def test_a_worker_that_is_to_stop_does_so_though_the_database_hangs(
    of_its_own: tuple[Postgres, Embedded], monkeypatch: pytest.MonkeyPatch
):
    server, embedded = of_its_own
    monkeypatch.setattr(supervisor, "ANSWER_S", 1.0)
    job_id = embedded.submit(wake=False, **ENDLESS)
    worker, over = embedded.process(), threading.Event()

    def hang() -> None:
        embedded.until_event(job_id, "checkpoint")
        number = child_of(embedded, job_id, 1)
        with server.frozen():
            time.sleep(2 * supervisor.TICK_S)
            worker.stop_asked = True
            wait_for(lambda: gone(number), "the end of the job's process", worker.settings.cancel_grace_s)
            assert over.wait(10), "the worker does not wait for the database"

    with meanwhile(hang):
        drain(worker)
        over.set()
    assert embedded.job(job_id).status == "running"
    assert counted(worker, "attempts", outcome="lost", cause="database_away") == 1
    wait_for(lambda: housekeeping.expire_leases(worker) or embedded.job(job_id).status == "queued", "the end of the lease", 10)


@pytest.mark.postgres
@pytest.mark.acceptance
def test_a_real_worker_ends_though_the_database_hangs(of_its_own: tuple[Postgres, Embedded]):
    server, embedded = of_its_own
    with embedded.worker() as running:
        job_id = embedded.submit(**ENDLESS)
        embedded.until_event(job_id, "checkpoint")
        with server.frozen():
            running.send_signal(signal.SIGTERM)
            limit = embedded.settings.cancel_grace_s + supervisor.ANSWER_S + 3 * housekeeping.LEAVE_S
            assert running.wait(limit + 5) == 0
