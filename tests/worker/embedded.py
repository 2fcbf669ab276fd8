"""An embedded set-up in a folder, with small real data, and real workers that can be killed."""

from __future__ import annotations

import copy
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import broker
from app.blobs import Blobs
from app.broker import make_celery
from app.database import EMBEDDED_TENANT, Database
from app.ids import new_id
from app.jobs import checkpoints, queries, service
from app.jobs.checkpoints import Kept
from app.jobs.table import Job, JobEvent
from app.settings import Settings
from app.spec import JobRequest
from tests import clocks
from tests.adaptation.conftest import CLASSES, SIZE
from worker import housekeeping, inputs
from worker.adaptation.journal import Journal
from worker.adaptation.run import run
from worker.process import WorkerProcess

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
"""Where nothing is said of how soon something is to happen: to import torch takes a minute where a core is shared by ten."""
QUICK: dict[str, Any] = {"method": "source_only"}
LONGER: dict[str, Any] = {
    "settings": {"precision": "fp32", "bridging": {"steps": 60, "batch_size": 8, "patience": 0, "calibration": "never"}}
}
"""Long enough to be caught in the middle."""
TOO_SMALL: dict[str, Any] = {"child_memory_bytes": 20 * 2**20}
"""Of a worker: Python itself starts in this, and the engine does not. For what comes before the job's process, and costs none of the
seconds that torch takes."""
ENDLESS: dict[str, Any] = {
    "settings": {"bridging": {"steps": 1_000_000, "batch_size": 8, "patience": 0, "validate_every": 1000, "calibration": "never"}}
}


@dataclass
class Embedded:
    settings: Settings
    db: Database
    blobs: Blobs
    data: Path
    """target/, pairs/, test/ and source.safetensors."""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def process(self, **changes: Any) -> WorkerProcess:
        """A worker in this process: for drain(), supervisor and housekeeping."""
        settings = self.settings.model_copy(update=changes)
        celery = make_celery(settings)
        return WorkerProcess(settings, self.db, self.blobs, celery, takes_cuda=settings.takes_cuda is True)

    def submit(self, *, wake: bool = True, **changes: Any) -> str:
        """A job over all of the data, training a few steps unless `changes` say otherwise."""
        where = f"file://{self.data}"
        scaling = {"kind": "millimetres", "high": 5000}
        body: dict[str, Any] = {
            "source_model": {"architecture": "timm/test_resnet", "classes": CLASSES, "input": {"size": SIZE}},
            "data": {
                "target": {"uri": f"{where}/target", "scaling": scaling},
                "pairs": {"uri": f"{where}/pairs", "scaling": scaling},
            },
            "settings": {
                "precision": "fp32",
                "bridging": {"steps": 12, "batch_size": 8, "validate_every": 4, "calibration": "never"},
                "transfer": {"epochs": 3, "batch_size": 16},
            },
            "device": "cpu",
        }
        merged = copy.deepcopy(body)
        for key, value in changes.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
        request = JobRequest.model_validate_json(json.dumps(merged))
        with self.blobs.stage() as staged:
            staged.write((self.data / "source.safetensors").read_bytes())
            job, _ = service.submit(self.db, self.blobs, self.settings, EMBEDDED_TENANT, request, staged, None)
        if wake:
            self.wake(job.id, job.needs_cuda)
        return job.id

    def wake(self, job_id: str, needs_cuda: bool = False) -> None:
        assert broker.wake(make_celery(self.settings), job_id, needs_cuda)

    def job(self, job_id: str) -> Job:
        return service.read(self.db, EMBEDDED_TENANT, job_id)

    def events(self, job_id: str, kind: str | None = None) -> list[JobEvent]:
        with self.db.read() as session:
            found = queries.events_after(session, EMBEDDED_TENANT, job_id, after=0, limit=100_000)
        return [event for event in found if kind in (None, event.kind)]

    def published(self, job_id: str) -> dict[str, bytes]:
        """name -> content, as the rows have it."""
        with self.db.read() as session:
            rows = queries.artifacts_of(session, EMBEDDED_TENANT, job_id)
        found = {}
        for row in rows:
            with closing(self.blobs.read(row.blob_key, 0, row.size)) as reading:
                found[row.name] = b"".join(reading)
        return found

    def kept(self, job_id: str) -> list[str]:
        """Keys of the job's artifacts, named by a row or not."""
        return sorted(key for key in self.blobs.keys_older_than(-60) if key.startswith("jobs/") and job_id in key)

    def checkpoints(self, job_id: str) -> list[Kept]:
        """Those in the blob store, the newest first."""
        return checkpoints.kept(self.blobs, EMBEDDED_TENANT, job_id)

    def until(self, job_id: str, *statuses: str, seconds: float = PATIENCE_S) -> Job:
        wait_for(lambda: self.job(job_id).status in statuses, f"{job_id} {statuses}", seconds, lambda: self.story(job_id))
        return self.job(job_id)

    def until_event(self, job_id: str, kind: str, *, attempt: int = 1, words: str = "", seconds: float = PATIENCE_S) -> JobEvent:
        def found() -> list[JobEvent]:
            return [event for event in self.events(job_id, kind) if event.attempt >= attempt and words in event.message]

        wait_for(found, f"{kind} {words!r} of {job_id}", seconds, lambda: self.story(job_id))
        return found()[0]

    def story(self, job_id: str) -> str:
        return "\n".join(f"{event.attempt} {event.kind}: {event.message}" for event in self.events(job_id))

    def sweep(self) -> None:
        """What a worker does every ten minutes."""
        housekeeping.sweep(self.process())

    def environment(self, **changes: Any) -> dict[str, str]:
        """Of a process of the service."""
        settings = self.settings.model_copy(update=changes)
        env = {key: value for key, value in os.environ.items() if not key.startswith("MODALBRIDGE_")} | {"OMP_NUM_THREADS": "1"}
        for name, value in settings.model_dump(mode="json").items():
            if value is not None:
                env[f"MODALBRIDGE_{name.upper()}"] = os.pathsep.join(value) if isinstance(value, list) else str(value)
        return env

    @contextmanager
    def worker(self, queues: str | None = None, ahead_s: int = 0, **changes: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A real one, as `make worker` starts it, its clock so far ahead. At the end it is asked to stop, unless the test has seen
        to its end."""
        env = self.environment(**changes) | clocks.ahead(ahead_s)
        command = [sys.executable, "-W", "ignore", "-m", "celery", "--app", "worker.celery_app", "worker", "--pool", "solo"]
        command += [
            "--concurrency",
            "1",
            *(["--queues", queues] if queues else []),
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
        with (self.settings.data_dir / "workers.log").open("ab") as log:
            running = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self.workers.append(running)
        try:
            yield running
            if running.poll() is None:
                running.send_signal(signal.SIGTERM)
                assert running.wait(30) == 0, "a worker that is asked to stop ends well"
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()
            clocks.forget(running.pid)


def asleep(embedded: Embedded, worker: subprocess.Popen[bytes]) -> None:
    """Stops the worker between two transactions: within one it would sleep on SQLite's lock, which nobody can take from it."""

    def stopped() -> bool:
        worker.send_signal(signal.SIGSTOP)
        with closing(sqlite3.connect(embedded.db.url.database, timeout=0.2)) as connection, suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
            return True
        worker.send_signal(signal.SIGCONT)
        return False

    wait_for(stopped, "the worker to be between two transactions")


def wait_for(
    condition: Callable[[], object], what: str, seconds: float = PATIENCE_S, story: Callable[[], str] = lambda: ""
) -> None:
    """Asks again and again; what is dear to ask is asked less often, for what it waits for needs the processor too."""
    until = time.monotonic() + seconds
    asked_at = time.thread_time()
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:g} s for {what}\n{story()}"
        time.sleep(max(0.02, 10 * (time.thread_time() - asked_at)))
        asked_at = time.thread_time()


def processes_that_name(text: str) -> list[int]:
    """Numbers of the living processes whose command line has the text."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(FileNotFoundError, ProcessLookupError):
                if text.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


def child_of(embedded: Embedded, job_id: str, attempt: int) -> int:
    """The number of the process that runs this attempt."""
    wait_for(lambda: processes_that_name(f"{job_id}/attempt-{attempt}/"), f"the process of attempt {attempt} of {job_id}")
    (number,) = processes_that_name(f"{job_id}/attempt-{attempt}/")
    return number


def caught_with_a_checkpoint(embedded: Embedded, job_id: str, attempt: int = 1) -> int:
    """The number of the process that runs this attempt, as soon as it has written one; no event tells it so fast."""
    number = child_of(embedded, job_id, attempt)
    checkpoint = embedded.settings.work_dir / job_id / f"attempt-{attempt}" / "out/checkpoint.pt"
    wait_for(checkpoint.exists, "a checkpoint", story=lambda: embedded.story(job_id))
    return number


def undisturbed(embedded: Embedded, job_id: str) -> dict[str, bytes]:
    """name -> content of the artifacts that the engine by itself makes of the job's request, from beginning to end, in this process."""
    with embedded.db.read() as session:
        asked = inputs.asked_for(session, job_id)
    out = embedded.settings.data_dir.parent / new_id("undisturbed")
    out.mkdir()
    paths = [embedded.blobs.local(model.blob_key, out / model.id) for model in asked.models]
    with Path(os.devnull).open("wb") as nobody:
        journal = Journal(nobody.fileno(), out)
        try:
            run(inputs.spec(asked, paths), out, journal, out, embedded.settings.data_roots, 30.0)
        finally:
            journal.close()
    return {path.name: path.read_bytes() for path in (out / "artifacts").iterdir()}


def gone(number: int) -> bool:
    """Dead, reaped or not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


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


def began(embedded: Embedded, job_id: str) -> bool:
    """With TOO_SMALL: all was ready for the job's process, and it was started."""
    job = embedded.job(job_id)
    return (job.status, (job.error or {}).get("code")) == ("failed", "child_died")


def counted(worker: WorkerProcess, name: str, **labels: str) -> float | None:
    return worker.metrics.registry.get_sample_value(f"modalbridge_worker_{name}_total", labels)


OUTLASTING: dict[str, Any] = {"settings": {"bridging": {"steps": 60, "patience": 0, "calibration": "never"}, "precision": "fp32"}}
"""A job that outlasts a lease by far."""


def assert_it_went_on(embedded: Embedded, job_id: str, worker: WorkerProcess) -> None:
    """One attempt, which the database was away for, and whose words are all there, once and in their order."""
    job = embedded.job(job_id)
    assert (job.status, job.attempt) == ("succeeded", 1)
    assert counted(worker, "lease_renewals_late") >= 1
    phases = [event.message for event in embedded.events(job_id, "phase")]
    assert phases == ["preparing", "bridging", "transferring", "evaluating", "publishing"], "nothing it said was lost"
