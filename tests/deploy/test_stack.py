"""make stack: the processes of docker-compose.yml, started here over PostgreSQL and Redis, with a real job."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa

from app.database import Database
from app.jobs.table import Worker
from demo.processes import free_port
from deploy import stack
from tests.adaptation.conftest import CLASSES, SIZE
from tests.test_docs import blocks
from tests.worker.embedded import ROOT, processes_that_name, wait_for

Services = dict[str, dict[str, Any]]


def job(client: httpx.Client, data: Path, device: str = "cpu") -> str:
    request = {
        "source_model": {"architecture": "timm/test_resnet", "classes": CLASSES, "input": {"size": SIZE}},
        "data": {name: {"uri": f"file://{data}/{name}"} for name in ("target", "pairs")},
        "method": "source_only",
        "device": device,
    }
    parts = {
        "request": (None, json.dumps(request), "application/json"),
        "source_model": ("source.safetensors", (data / "source.safetensors").read_bytes()),
    }
    answer = client.post("/jobs", files=parts)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def test_a_front_ends_port_that_somebody_has_is_told_before_anything_starts(tmp_path: Path) -> None:
    nowhere = {"database_url": "postgresql+psycopg://127.0.0.1:9/x", "broker_url": "redis://127.0.0.1:9", "s3_endpoint_url": None}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port} is taken"):
            with stack.running(data=tmp_path, folder=tmp_path / "stack", workers=1, port=port, **nowhere):
                pass
    assert not (tmp_path / "stack").exists()


@pytest.mark.acceptance
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.prometheus
def test_a_job_goes_through_and_sigterm_leaves_no_process(
    tmp_path: Path, small_data: Path, database_url: str, broker_url: str
) -> None:
    port, folder = free_port(), tmp_path / "stack"
    options = {
        "data": small_data,
        "folder": folder,
        "workers": 2,
        "port": port,
        "database-url": database_url,
        "broker-url": broker_url,
    }
    line = [
        sys.executable,
        "-m",
        "deploy.stack",
        *(str(part) for name, value in options.items() for part in (f"--{name}", value)),
    ]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            assert running.stdout is not None
            told = ""
            while "Ctrl-C" not in told and (said := running.stdout.readline()):
                told += said
            numbers = processes_told(told)
            assert numbers.keys() == {"store", "front-end", "worker-1", "worker-2", "prometheus"}, told
            assert (folder / "worker.env").stat().st_mode & 0o777 == 0o600

            db = Database(database_url)
            wait_for(lambda: workers_of(db) == {numbers["worker-1"], numbers["worker-2"]}, "two workers", 30)
            db.dispose()

            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                assert client.get("/readyz").json()["checks"] == dict.fromkeys(("database", "broker", "blobs", "worker"), "ok")
                address = job(client, small_data)
                numbers |= drained(running, "worker-1", numbers["worker-1"])
                assert ended(client, address) == "succeeded"
                assert client.get(f"{address}/model").status_code == 200
            assert [path for path in (folder / "store").rglob("*.dat") if path.stat().st_size > 10_000], (
                "the weights are in the store"
            )
            at, worker = (re.search(rf"^{name} .* (http\S+)", told, re.MULTILINE)[1] for name in ("prometheus", "worker-2"))
            wait_for(
                lambda: up(at) == {"frontend": 1, "prometheus": 1, "worker": 2},
                "Prometheus to reach them all",
                60,
                lambda: str(up(at)),
            )
            assert "ModalBridgeNoWorker" in httpx.get(f"{at}/api/v1/rules").text
            (look,) = blocks(ROOT / "docs/monitoring.md", "sh")
            here = {"8000": port, "9101": urlsplit(worker).port, "9090": urlsplit(at).port}
            for there, number in here.items():
                assert f"127.0.0.1:{there}" in look
                look = look.replace(f"127.0.0.1:{there}", f"127.0.0.1:{number}")
            seen = subprocess.run(["bash", "-euc", look], capture_output=True, text=True, check=True).stdout
            assert (
                '"status":"ok"' in seen
                and 'modalbridge_workers{state="idle"} 2.0' in seen
                and "modalbridge_worker_busy 0.0" in seen
            )
            assert '"status":"success"' in seen

            running.send_signal(signal.SIGTERM)
            assert "every process that was started has ended" in running.communicate(timeout=60)[0]
        finally:
            running.kill()
    assert running.returncode == 0
    assert [number for number in numbers.values() if Path(f"/proc/{number}").exists()] == []
    assert processes_that_name(str(tmp_path)) == []


def ended(client: httpx.Client, address: str) -> str:
    """The job's status once it is over."""
    until = time.monotonic() + 120
    while (found := client.get(address, params={"wait": 5}).json())["status"] in ("queued", "running"):
        assert time.monotonic() < until, found
    return found["status"]


def processes_told(said: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"^(\S+) .*process (\d+)", said, re.MULTILINE)}


def drained(running: subprocess.Popen[str], name: str, number: int) -> dict[str, int]:
    """A worker that is asked to stop hands back its job; another takes its place, whose process is told."""
    os.kill(number, signal.SIGTERM)
    assert running.stdout is not None
    told = processes_told(running.stdout.readline())
    assert told.keys() == {name} and told[name] != number
    return told


def up(prometheus: str) -> dict[str, int]:
    found = httpx.get(f"{prometheus}/api/v1/query", params={"query": "sum by (job) (up)"}).json()["data"]["result"]
    return {one["metric"]["job"]: int(one["value"][1]) for one in found}


def workers_of(db: Database) -> set[int]:
    with db.read() as session:
        return set(session.scalars(sa.select(Worker.pid)))


def test_a_part_that_does_not_come_up_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    url = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"
    line = [sys.executable, "-m", "deploy.stack", "--data", str(tmp_path), "--folder", str(folder), "--database-url", url]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"no PostgreSQL at {url}" in done.stderr
    assert processes_that_name(str(tmp_path)) == []


def test_without_a_folder_of_images_it_says_what_to_do() -> None:
    for data in ("", "/no/such/folder"):
        done = subprocess.run([sys.executable, "-m", "deploy.stack", "--data", data], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert "make stack DATA=/folder" in done.stderr


def test_the_services_servers_become_those_of_this_machine(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALBRIDGE_LEASE_S", "7")
    servers = {"postgres": "postgresql+psycopg://me@db:1/x", "redis": "redis://r:2/3", "store": "http://s:4"}
    env = stack.environment(services["worker"], servers, MODALBRIDGE_DATA_DIR="/here", MODALBRIDGE_NOT_THERE="x")
    ours = {name.removeprefix("MODALBRIDGE_"): value for name, value in env.items() if name.startswith("MODALBRIDGE_")}
    assert (ours["DATABASE_URL"], ours["BROKER_URL"], ours["S3_ENDPOINT_URL"]) == tuple(servers.values())
    assert (ours["DATA_DIR"], ours["BLOBS_URL"], ours["DATA_ROOTS"]) == ("/here", "s3://modalbridge/blobs", "/images")
    assert {"LEASE_S", "NOT_THERE"} & ours.keys() == set(), "what compose does not set is not set"
    line = stack.command(services["frontend"], servers, host="127.0.0.1", port="81")
    assert line[:6] == [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--host"]
    assert line[6:9] == ["127.0.0.1", "--port", "81"]
    line = stack.command(services["bucket"], servers)
    assert line == [sys.executable, "deploy/bucket.py", "s3://modalbridge/blobs", "--endpoint-url", "http://s:4"]


def test_what_fails_as_soon_as_it_is_started_is_not_started_for_ever(tmp_path: Path) -> None:
    running = stack.Stack(tmp_path)
    running.begin("worker-1", stack.Part(["sh", "-c", "echo no such database; exit 3"], os.environ, 5))
    running.processes["worker-1"].wait()
    with pytest.raises(RuntimeError, match=r"worker-1 ended with code 3:\nno such database"):
        list(running.keep())
    running.began["worker-1"] -= stack.SOON_S
    assert list(running.keep()) == ["worker-1"], "later it is worth a try"
    running.processes["worker-1"].wait()
    assert running.log("worker-1").read_text() == 2 * "no such database\n"
