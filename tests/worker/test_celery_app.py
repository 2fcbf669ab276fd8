"""The worker process by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import sqlalchemy as sa

from app.jobs.table import Worker
from tests.worker.embedded import ROOT, Embedded, wait_for


def python(code: str, embedded: Embedded, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "MODALBRIDGE_DATA_DIR": str(embedded.settings.data_dir),
        "MODALBRIDGE_DATABASE_URL": embedded.settings.database_url,
    }
    command = [sys.executable, *arguments, *(["-c", code] if code else [])]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_no_torch_in_the_workers_own_process(embedded: Embedded):
    code = "import sys, worker.tasks; print({'torch', 'torchvision', 'numpy', 'PIL', 'mlflow'} & set(sys.modules))"
    done = python(code, embedded)
    assert done.stdout == "set()\n", done.stderr


def test_its_memory_is_hidden_from_its_jobs_processes(embedded: Embedded):
    code = "from worker import celery_app, sandbox; celery_app._check(); print(sandbox.libc().prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    done = python(code, embedded)
    assert done.stdout == "0\n", done.stderr


def test_it_is_known_while_it_runs_and_not_afterwards(embedded: Embedded):
    def known() -> int:
        with embedded.db.read() as session:
            return session.scalar(sa.select(sa.func.count(Worker.id)))

    with embedded.worker():
        wait_for(known, "the worker's row")
    assert known() == 0


@pytest.mark.parametrize(("found", "remedy"), [("0001", "make migrate"), ("another", "start the newer code")])
def test_it_does_not_start_on_a_schema_that_is_not_its_own(embedded: Embedded, found: str, remedy: str):
    with embedded.db.write() as session:
        session.execute(sa.update(sa.table("alembic_version", sa.column("version_num"))).values(version_num=found))
    done = python("", embedded, "-m", "celery", "--app", "worker.celery_app", "worker", "--pool", "solo")
    assert done.returncode != 0
    assert remedy in done.stderr
