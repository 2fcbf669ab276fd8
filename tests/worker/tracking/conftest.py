"""A real MLflow server, and workers that tell it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from tests import mlflow_server
from tests.worker.embedded import Embedded
from tests.worker.tracking.telling import worker_of
from worker.process import WorkerProcess


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server.serving(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    return MlflowClient(url, url)


@pytest.fixture
def worker(embedded: Embedded, url: str) -> WorkerProcess:
    return worker_of(embedded, url)


@pytest.fixture
def worker_both(embedded_both: Embedded, url: str) -> WorkerProcess:
    return worker_of(embedded_both, url)
