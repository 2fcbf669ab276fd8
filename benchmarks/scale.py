"""Does the service stay as fast with a million jobs as with a thousand?

    python -m benchmarks.scale                       # PostgreSQL, 1,000 and 1,000,000 rows
    python -m benchmarks.scale --server ''           # SQLite

Two databases, made for this and dropped afterwards, of so many rows of jobs, each with a label, one in twenty failed, in ten shares. A
hundred are queued, and before them a tenth of all, which wait for a CUDA device. What the service asks of the database for each request
is then asked of both in turns, in one run: a page of the list, whole, by status, by label and deep down; a poll; and a claim, rolled back,
by a worker with a CUDA device and by one without. Medians in milliseconds, and the ratio.
"""

# ruff: noqa: S608 - its own words alone, nothing of a client's
from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import schema
from app.database import EMBEDDED_TENANT, Database
from app.ids import new_id
from app.jobs import lifecycle, queries
from app.jobs.states import Status
from benchmarks.environment import environment

SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
QUEUED = 100
PAGE = 50
MODEL = "model_0"
CLAIMS = {"claim": True, "claim, without CUDA": False}
"""Whether the worker takes jobs that want a CUDA device."""


@contextmanager
def database(server: str, folder: Path) -> Iterator[Database]:
    """A migrated, empty one, gone afterwards. server: of PostgreSQL; '' for SQLite."""
    name = new_id("scale")
    if not server:
        db = Database(f"sqlite:///{folder / name}.db")
        schema.upgrade(db)
        yield db
        db.dispose()
        return
    administration = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with administration.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    db = Database(sa.make_url(server).set(database=name).render_as_string(hide_password=False))
    try:
        schema.upgrade(db)
        yield db
    finally:
        db.dispose()
        with administration.connect() as connection:
            connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        administration.dispose()


def job_id(number: int) -> str:
    return f"job_{number:026}"


def fill(db: Database, rows: int, queued: int = QUEUED, for_cuda: int = 0) -> None:
    """Jobs 1 to `rows`, the last ones queued, the first of these for CUDA; by one statement a table, in the database itself."""
    if db.is_sqlite:
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
        source, id, none = "n", "'job_' || printf('%026d', i)", "'{}'"
    else:
        numbers, source = "", f"generate_series(1, {rows}) AS n(i)"
        id, none = "'job_' || lpad(i::text, 26, '0')", "'{}'::jsonb"
    status = f"CASE WHEN i > {rows - queued - for_cuda} THEN 'queued' WHEN i % 20 = 0 THEN 'failed' ELSE 'succeeded' END"
    needs_cuda = f"i > {rows - queued - for_cuda} AND i <= {rows - queued}"
    columns = (
        "id, tenant_id, source_model_id, method, request, request_digest, status, attempt, lost_attempts, version, last_event, "
        "share, needs_cuda, created_at, queued_at, updated_at"
    )
    values = f"{id}, '{EMBEDDED_TENANT}', '{MODEL}', 'tgmb_tgkt', {none}, '', {status}, 1, 0, 1, 0, 'team_' || (i % 10), {needs_cuda}, {', '.join(['CURRENT_TIMESTAMP'] * 3)}"
    with db.engine.begin() as connection:
        model = "id, tenant_id, sha256, fingerprint, size, format, description, blob_key, created_at"
        connection.execute(
            sa.text(
                f"INSERT INTO source_models ({model}) VALUES ('{MODEL}', '{EMBEDDED_TENANT}', '', '', 1, 'torch', {none}, 'k', CURRENT_TIMESTAMP)"
            )
        )
        connection.execute(sa.text(f"INSERT INTO jobs ({columns}) {numbers} SELECT {values} FROM {source}"))
        label = f"{id}, 'team', 'team_' || (i % 10), '{EMBEDDED_TENANT}'"
        connection.execute(
            sa.text(f"INSERT INTO job_labels (job_id, key, value, tenant_id) {numbers} SELECT {label} FROM {source}")
        )
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))


def questions(rows: int) -> dict[str, Callable[[Session, Database], object]]:
    """What the service asks, by name."""

    def page(status: Sequence[Status] = (), after: str | None = None, **labels: str) -> Callable[[Session, Database], object]:
        return lambda session, _: queries.newest(
            session, EMBEDDED_TENANT, status=status, labels=labels, after=after, limit=PAGE + 1
        )

    def claim(takes_cuda: bool) -> Callable[[Session, Database], object]:
        lease = timedelta(seconds=30)
        return lambda session, db: lifecycle.claim_next(
            session, "worker_0", lease=lease, now=db.now(session), takes_cuda=takes_cuda
        )

    return {
        "list": page(),
        "list, failed": page([Status.FAILED]),
        "list, by label": page(team="team_3"),
        "list, from the middle": page(after=job_id(rows // 2)),
        "poll": lambda session, _: queries.version(session, EMBEDDED_TENANT, job_id(rows // 2)),
        "read": lambda session, _: queries.by_id(session, EMBEDDED_TENANT, job_id(rows // 2)),
        **{name: claim(takes_cuda) for name, takes_cuda in CLAIMS.items()},
    }


def timed(db: Database, name: str, question: Callable[[Session, Database], object]) -> float:
    """Milliseconds, as a request or a worker asks it. What a claim changes is rolled back."""
    with Session(db.engine) if name in CLAIMS else db.read() as session:
        began = time.perf_counter()
        found = question(session, db)
        took = 1000 * (time.perf_counter() - began)
        session.rollback()
    if not found:
        raise RuntimeError("a question that finds nothing measures nothing")
    return took


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=SERVER, help=f"of PostgreSQL; empty for SQLite (default: {SERVER})")
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=300)
    given = parser.parse_args(arguments)
    if min(given.rows) < 4 * QUEUED:
        parser.error(f"--rows must be {4 * QUEUED} at least")
    with (
        tempfile.TemporaryDirectory() as folder,
        database(given.server, Path(folder)) as few,
        database(given.server, Path(folder)) as many,
    ):
        for db, rows in zip((few, many), given.rows, strict=True):
            print(f"{rows} rows", file=sys.stderr, flush=True)
            fill(db, rows, for_cuda=rows // 10)
        asked = [(db, questions(rows)) for db, rows in zip((few, many), given.rows, strict=True)]
        taken: dict[str, list[list[float]]] = {name: [[], []] for name in asked[0][1]}
        for number in range(given.rounds):
            for name, both in taken.items():
                for which in (0, 1) if number % 2 else (1, 0):  # neither always comes first
                    db, named = asked[which]
                    both[which].append(timed(db, name, named[name]))
        backend = few.url.get_backend_name()
    medians = {name: [statistics.median(times) for times in both] for name, both in taken.items()}
    print(
        json.dumps({"environment": environment(1, 1) | {"database": backend, "rows": given.rows}, "ms": medians}), file=sys.stderr
    )
    print(f"| {backend} | {given.rows[0]:,} rows | {given.rows[1]:,} rows | ratio |\n|---|---:|---:|---:|")
    for name, (few_ms, many_ms) in medians.items():
        print(f"| {name} | {few_ms:.2f} ms | {many_ms:.2f} ms | {many_ms / few_ms:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
