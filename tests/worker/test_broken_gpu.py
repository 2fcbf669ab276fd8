"""A GPU that is gone or fails, and what it leaves behind: a process that can't be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from app.database import EMBEDDED_TENANT
from app.errors import Problem
from app.jobs import service
from app.jobs.table import Worker
from tests.worker.embedded import QUICK, ROOT, Embedded, child_of, counted, meanwhile
from worker import child, inputs, workspace
from worker.adaptation.events import Failed, OutputFile, Result
from worker.draining import drain
from worker.gpus import try_out

Says = Callable[[str], None]
CELERY = ["--app", "worker.celery_app", "worker", "--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has some."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Says:
    """In the engine's place: a process that runs this code."""

    def runs(code: str) -> None:
        monkeypatch.setattr(inputs, "command", lambda settings, space, fetched: [sys.executable, "-c", code, str(space.spec)])

    return runs


def failing(code: str, more: str = "") -> str:
    line = Failed(problem=Problem(code, "CUDA error: uncorrectable ECC error encountered").document()).model_dump_json()
    return f"import sys, time\nprint({line!r}, flush=True)\n{more}\nsys.exit(1)"


def left_for_another(embedded: Embedded, job_id: str) -> None:
    service.cancel(embedded.db, EMBEDDED_TENANT, job_id)
    workspace.remove(embedded.settings.work_dir, job_id, 9)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_worker_that_has_lost_its_gpu_costs_one_job_an_attempt_and_takes_no_other(embedded: Embedded, device: str):
    first, second = (embedded.submit(wake=False, seed=n, device=device, **QUICK) for n in range(2))
    worker = embedded.process(takes_cuda=True)
    assert drain(worker) == 1
    job = embedded.job(first)
    assert (job.status, job.lost_attempts) == ("queued", 1)
    said = embedded.events(first, "state")[-1].message
    assert "the worker's GPU cannot be used: no CUDA device is visible to the worker: " in said
    assert embedded.job(second).attempt == 0
    assert worker.must_end is not None and worker.must_end in said
    assert counted(worker, "attempts", outcome="lost", cause="device_unavailable") == 1
    assert drain(worker) == 0
    left_for_another(embedded, first)


def test_an_attempt_whose_gpu_fails_is_lost_and_the_last_one_tells_why(embedded: Embedded, engine: Says):
    engine(failing("device_failed"))
    job_id = embedded.submit(wake=False, **QUICK)
    for status in ("queued", "queued", "failed"):
        worker = embedded.process()
        assert drain(worker) == 1
        assert embedded.job(job_id).status == status
        assert "the worker's GPU failed: CUDA error: uncorrectable ECC" in worker.must_end
        assert counted(worker, "attempts", outcome="lost", cause="device_failed") == 1
    job = embedded.job(job_id)
    assert (job.error["code"], job.lost_attempts) == ("device_failed", 3)


def test_a_full_disk_ends_no_worker(embedded: Embedded, engine: Says):
    engine(failing("disk_full"))
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process()
    assert drain(worker) == 3
    assert worker.must_end is None and embedded.job(job_id).error["code"] == "disk_full"


def test_a_gpu_is_tried_as_a_job_would():
    with pytest.raises(RuntimeError, match="it is to take jobs for CUDA, and can't: no CUDA device is visible to the worker: "):
        try_out(1, inputs.passed_on())


@pytest.mark.acceptance
def test_a_worker_that_is_to_take_jobs_for_cuda_and_cannot_does_not_start(embedded: Embedded):
    job_id = embedded.submit(device="cuda", **QUICK)
    with embedded.worker(takes_cuda=True) as worker:
        assert worker.wait(120) == 1
    assert "the worker cannot start: it is to take jobs for CUDA" in (embedded.settings.data_dir / "workers.log").read_text()
    assert (embedded.job(job_id).status, embedded.job(job_id).attempt) == ("queued", 0)


@pytest.mark.acceptance
def test_a_gpu_that_only_the_driver_knows_leaves_a_worker_for_the_cpu(embedded: Embedded):
    """As an old one of a laptop, or any beside a torch without CUDA: nobody asked for it."""
    job_id = embedded.submit(**QUICK)
    code = (
        "import worker.gpus\n"
        "worker.gpus.Gpus.__init__ = lambda self, visible: vars(self).update(handles={'GPU-1': None}, why_none=None)\n"
        "worker.gpus.Gpus.collect = lambda self: []\n"
        "from celery.__main__ import main\n"
        "main()\n"
    )
    env, log = embedded.environment(), embedded.settings.data_dir / "by-hand.log"
    with log.open("wb") as said:
        worker = subprocess.Popen([sys.executable, "-c", code, *CELERY], env=env, cwd=ROOT, stdout=said, stderr=said)
    try:
        embedded.until(job_id, "succeeded")
        with embedded.db.read() as session:
            seen = list(session.scalars(sa.select(Worker)))
    finally:
        worker.terminate()
        worker.wait(60)
    assert [one.takes_cuda for one in seen] == [False]
    assert "there is a GPU that can't be used" in log.read_text()


@pytest.mark.acceptance
def test_a_real_worker_ends_with_the_code_of_a_failure_so_that_it_is_started_again(embedded: Embedded):
    """Its GPU goes after it was tried."""
    job_id = embedded.submit(device="cuda", **QUICK)
    code = (
        "import worker.gpus\n"
        "worker.gpus.try_out = lambda processes, environment: None\n"
        "from celery.__main__ import main\n"
        "main()\n"
    )
    env = embedded.environment(takes_cuda=True, lost_backoff_s=60)
    done = subprocess.run([sys.executable, "-c", code, *CELERY], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "the worker ends, to be started again" in done.stdout + done.stderr
    assert (embedded.job(job_id).status, embedded.job(job_id).lost_attempts) == ("queued", 1)
    left_for_another(embedded, job_id)


def test_a_process_that_has_said_its_last_word_and_does_not_end_is_killed(embedded: Embedded, engine: Says):
    engine(failing("out_of_memory", "time.sleep(60)"))
    job_id = embedded.submit(wake=False, **QUICK)
    began = time.monotonic()
    drain(embedded.process(cancel_grace_s=0.5))
    assert time.monotonic() - began < 30
    assert embedded.job(job_id).error["code"] == "out_of_memory"


def test_a_process_that_can_say_no_more_and_hangs_is_silent(embedded: Embedded, engine: Says):
    engine("import os, time\nos.close(1)\ntime.sleep(60)")
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process(job_time_limit_s=8)
    silent = []

    def look() -> None:
        assert child_of(embedded, job_id, 1)
        time.sleep(4)
        silent.append(worker.metrics.running.silent_s())

    with meanwhile(look):
        drain(worker)
    assert silent[0] > 2


def test_a_process_that_has_its_result_and_does_not_end_is_published(embedded: Embedded, monkeypatch: pytest.MonkeyPatch):
    """As one that hangs in the GPU's driver on its way out: all that it was for is done."""
    code = (
        "import runpy, time\n"
        "try:\n"
        "    runpy.run_module('worker.sandbox', run_name='__main__', alter_sys=True)\n"
        "except SystemExit:\n"
        "    time.sleep(600)\n"
    )
    command = inputs.command
    monkeypatch.setattr(inputs, "command", lambda *given: [sys.executable, "-I", "-c", code, *command(*given)[4:]])
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process(cancel_grace_s=0.5)
    drain(worker)
    assert (embedded.job(job_id).status, embedded.job(job_id).lost_attempts) == ("succeeded", 0)
    assert counted(worker, "child_exits", cause="ended_by_worker") == 1


def test_one_that_has_its_result_just_as_its_worker_stops_is_published(embedded: Embedded, engine: Says):
    """It was asked to stop, says its result and hangs."""
    line = Result(summary={}, artifacts=[OutputFile(name="model.json", media_type="application/json")]).model_dump_json()
    engine(
        "import pathlib, signal, time\n"
        "pathlib.Path('artifacts').mkdir()\n"
        "pathlib.Path('artifacts/model.json').write_text('{}')\n"
        f"signal.signal(signal.SIGTERM, lambda *_: print({line!r}, flush=True))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process(cancel_grace_s=2)

    def stop() -> None:
        embedded.until_event(job_id, "log")
        worker.stop_asked = True

    with meanwhile(stop):
        drain(worker)
    assert (embedded.job(job_id).status, embedded.kept(job_id)) == (
        "succeeded",
        [f"jobs/{EMBEDDED_TENANT}/{job_id}/1/model.json"],
    )


@pytest.fixture
def unkillable(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in a system call that does not return, to whoever looks and to whoever kills."""
    started: list[child.Child] = []
    begin = child.Child.__init__

    def beginning(self: child.Child, *given: object) -> None:
        begin(self, *given)
        started.append(self)

    monkeypatch.setattr(child.Child, "__init__", beginning)
    with monkeypatch.context() as patched:
        patched.setattr(child, "LAST_S", 0.5)
        patched.setattr(child, "PIPE_WAIT_S", 0.1)
        patched.setattr(child.Child, "ended", lambda self: False)
        patched.setattr(os, "killpg", lambda number, signal: None)
        yield
    for one in started:
        one.kill()
        one.close()


@pytest.mark.usefixtures("unkillable")
@pytest.mark.parametrize(("why", "status"), [("stop", "queued"), ("cancel", "cancelled"), ("time_limit", "failed")])
def test_a_process_that_cannot_be_killed_keeps_neither_its_job_nor_its_worker(
    embedded: Embedded, engine: Says, why: str, status: str
):
    engine("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)")
    job_id = embedded.submit(wake=False, **QUICK)
    worker = embedded.process(cancel_grace_s=0.5, job_time_limit_s=2 if why == "time_limit" else 100)

    def end_it() -> None:
        assert child_of(embedded, job_id, 1)
        if why == "stop":
            worker.stop_asked = True
        elif why == "cancel":
            service.cancel(embedded.db, EMBEDDED_TENANT, job_id)

    with meanwhile(end_it):
        drain(worker)
    job = embedded.job(job_id)
    assert (job.status, job.lost_attempts) == (status, 0)
    assert why != "time_limit" or job.error["code"] == "time_limit"
    assert "cannot be killed" in worker.must_end
    if status == "queued":
        left_for_another(embedded, job_id)
