"""docs/deploying.md's backup and restore by hand, as the page has them, over the store and the servers of `make stack`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from app import schema
from app.database import Database
from demo.processes import free_port
from deploy import stack
from tests.deploy.test_stack import Services, ended, job
from tests.test_docs import ROOT, blocks

SYNC = '''#!{python}
"""What the page asks of `aws s3 sync`: every object from one place to the other."""
import sys
from pathlib import Path
import boto3
_, _s3, _sync, _option, url, source, target = sys.argv
client = boto3.client("s3", endpoint_url=url)
if source.startswith("s3://"):
    bucket = source.removeprefix("s3://")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", ()):
            place = Path(target, found["Key"])
            place.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, found["Key"], str(place))
else:
    for path in Path(source).rglob("*"):
        if path.is_file():
            client.upload_file(str(path), target.removeprefix("s3://"), path.relative_to(source).as_posix())
'''
"""AWS's own command takes another botocore than ours, so the tests cannot have it beside."""


def run(block: str, folder: Path, backup: Path) -> None:
    """In the shell of a reader who has `make stack`'s folder under its name, and this environment's programs."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "aws").write_text(SYNC.format(python=sys.executable))
    (programs / "aws").chmod(0o755)
    script = block.replace("var/stack/", f"{folder}/").replace("/backup/", f"{backup}/")
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MODALBRIDGE_", "AWS_"))} | {"PATH": path}
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def downloads(client: httpx.Client, address: str) -> dict[str, str]:
    """name -> sha256 of what came, which is what was promised."""
    came = {}
    for one in client.get(f"{address}/artifacts").json()["data"]:
        answer = client.get(f"{address}/artifacts/{one['name']}")
        came[one["name"]] = hashlib.sha256(answer.content).hexdigest()
        assert (answer.status_code, came[one["name"]], answer.headers["etag"]) == (200, one["sha256"], f'"{one["sha256"]}"')
    return came


@pytest.mark.acceptance
@pytest.mark.postgres
@pytest.mark.redis
def test_what_was_backed_up_is_there_again_on_empty_servers_and_work_goes_on(
    tmp_path: Path, small_data: Path, services: Services, database_url: str, broker_url: str
) -> None:
    backing_up, restoring = blocks(ROOT / "docs/deploying.md", "sh")
    folder, backup = tmp_path / "stack", tmp_path / "backup"
    for made in (folder, backup):
        made.mkdir()
    given = {"data": small_data, "folder": folder, "workers": 1, "database_url": database_url, "broker_url": broker_url}

    def store(name: str) -> tuple[stack.Stack, str]:
        (tmp_path / name).mkdir()
        running = stack.Stack(tmp_path / name)
        running.begin("store", part := stack.store_of(services["store"], tmp_path / name))
        stack.until_it_answers(running, "store", f"{part.address}/healthz")
        return running, part.address

    first, address = store("first")
    try:
        with stack.running(**given, s3_endpoint_url=address, port=(port := free_port())):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                done = job(client, small_data)
                assert ended(client, done) == "succeeded"
                came = downloads(client, done)
                run(backing_up, folder, backup)
                after = job(client, small_data, device="cuda")  # which no worker here begins
    finally:
        first.end("store")

    second, address = store("second")
    try:
        env = folder / "worker.env"
        env.write_text(env.read_text() + f"export MODALBRIDGE_S3_ENDPOINT_URL={address}\n")
        run(restoring, folder, backup)
        with stack.running(**given, s3_endpoint_url=address, port=(port := free_port())):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                assert client.get(done).json()["status"] == "succeeded"
                assert downloads(client, done) == came and "model.safetensors" in came
                assert client.get(after).status_code == 404, "it came after the backup"
                assert ended(client, job(client, small_data)) == "succeeded"
    finally:
        second.end("store")


@pytest.mark.postgres
def test_a_backup_from_before_a_migration_can_be_restored_after_it_and_migrated_again(tmp_path: Path, database_url: str) -> None:
    """Tables that the migration has made are not in the backup, and must not be in its way."""
    backing_up, restoring = blocks(ROOT / "docs/deploying.md", "sh")
    dump = backing_up.splitlines()[1]
    load = [line for line in restoring.splitlines() if line.startswith(("psql", "pg_restore", "alembic"))]
    assert "pg_dump" in dump and len(load) == 3
    stack.make_database(database_url)
    env = tmp_path / "worker.env"
    env.write_text(f"export MODALBRIDGE_DATABASE_URL={database_url}\n")
    first = f". {env}\n"
    run(f"{first}alembic upgrade 0008\n{dump}\nalembic upgrade head\n", tmp_path, tmp_path)
    run("\n".join([first, *load]), tmp_path, tmp_path)
    db = Database(database_url)
    schema.require_current(db)
    with db.read() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM mlflow_exports")) == 0
    db.dispose()
