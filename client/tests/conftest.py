"""A front end that really listens, jobs in every state without a worker, and both clients as one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.datasets.table import Dataset
from app.errors import Problem
from app.jobs import lifecycle
from app.jobs.table import Job
from app.settings import Settings
from app.source_models.table import SourceModel
from app.webhooks.table import Webhook
from blocking import Blocking
from faults import Proxy, proxy_to
from modalbridge import AsyncClient, Client, Retries
from tests.app.conftest import make_data, request_body, safetensors
from tests.conftest import Service, serving, sqlite_template

__all__ = ["request_body", "sqlite_template"]

CLIENT = Path(__file__).parents[1]
QUICK = Retries(first_s=0.02, most_s=0.1)
LEASE = timedelta(seconds=60)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def data(data_root: Path) -> Path:
    """Read only."""
    return make_data(data_root)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, data_root: Path) -> Iterator[Service]:
    """One front end for all tests, over SQLite: the client cannot tell."""
    folder = tmp_path_factory.mktemp("var")
    (folder / "modalbridge.db").write_bytes(sqlite_template.read_bytes())
    with serving(
        Settings(data_dir=folder, data_roots=(data_root,), max_upload_bytes=2**16, webhook_private_hosts=("127.0.0.1",))
    ) as running:
        yield running


@pytest.fixture
def service(served: Service) -> Iterator[Service]:
    """Empty at each test's beginning."""
    yield served
    with served.db.write() as session:
        for table in (Job, SourceModel, Dataset, Webhook):  # the rest is deleted along with its job
            session.execute(sa.delete(table))


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    with proxy_to(service.url) as running:
        yield running


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Client]]:
    """Client(...), and AsyncClient(...) that is called like it."""
    with ExitStack() as stack:
        if request.param == "blocking":
            yield lambda *given, **named: stack.enter_context(Client(*given, **{"retries": QUICK} | named))
            return
        runner = stack.enter_context(asyncio.Runner())

        def make(*given: Any, **named: Any) -> Any:
            async def made() -> AsyncClient:
                return AsyncClient(*given, **{"retries": QUICK} | named)

            return stack.enter_context(closing(Blocking(runner.run(made()), runner)))

        yield make


@pytest.fixture
def client(connect: Callable[..., Client], service: Service) -> Client:
    return connect(service.url)


@pytest.fixture
def faulty(connect: Callable[..., Client], proxy: Proxy) -> Client:
    """By way of the proxy."""
    return connect(proxy.url)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "rgb.safetensors"
    path.write_bytes(safetensors())
    return path


@pytest.fixture
def job_file(request_body: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"$schema": "job.schema.json"} | request_body))
    return path


@dataclass
class Jobs:
    """Jobs in the states that a worker brings them to, by the worker's own functions."""

    service: Service
    client: Client
    body: dict[str, Any]
    weights: Path

    def queued(self, **changes: Any) -> str:
        return self.client.jobs.submit(self.body | changes, self.weights).id

    def claimed(self) -> lifecycle.Claim:
        """The job that has been queued longest, running."""
        with self.service.db.write() as session:
            claim = lifecycle.claim_next(session, "worker_a", lease=LEASE, now=self.service.db.now(session))
        assert claim is not None
        return claim

    def running(self, **changes: Any) -> lifecycle.Claim:
        self.queued(**changes)
        return self.claimed()

    def advance(self, claim: lifecycle.Claim, **values: Any) -> None:
        with self.service.db.write() as session:
            lifecycle.record(session, claim, now=self.service.db.now(session), **values)

    def fail(self, claim: lifecycle.Claim, code: str = "training_diverged", detail: str = "L_rec is nan at step 7") -> None:
        with self.service.db.write() as session:
            lifecycle.fail(session, claim, Problem(code, detail).document(), now=self.service.db.now(session))

    def succeed(self, claim: lifecycle.Claim, more: dict[str, Any] | None = None, **files: bytes) -> None:
        """files: name, of JSON without its ending -> content; model.safetensors at least. more: of the result."""
        rows = []
        for stem, content in ({"model": b"weights"} | files).items():
            name = f"{stem}.safetensors" if stem == "model" else stem if "." in stem else f"{stem}.json"
            with self.service.blobs.stage() as staged:
                staged.write(content)
                key = f"jobs/{claim.job_id}/1/{name}"
                self.service.blobs.keep(staged, key)
            media_type = "application/octet-stream"
            rows.append({"name": name, "media_type": media_type, "size": len(content), "sha256": staged.sha256, "blob_key": key})
        reasons = [{"verdict": "look_closer", "what": "Entropy is high", "value": 0.51, "threshold": 0.5}]
        result = {"verdict": "look_closer", "reasons": reasons} | (more or {})
        with self.service.db.write() as session:
            assert lifecycle.succeed(session, claim, result=result, artifacts=rows, now=self.service.db.now(session))

    def succeeded(self, **files: bytes) -> str:
        claim = self.running()
        self.succeed(claim, **files)
        return claim.job_id


@pytest.fixture(scope="session")
def submitter(served: Service) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture
def jobs(service: Service, submitter: Client, request_body: dict[str, Any], weights: Path) -> Jobs:
    return Jobs(service, submitter, request_body, weights)


@pytest.fixture
def big() -> bytes:
    """Some hundred network reads."""
    return os.urandom(3_000_000)
