"""A real MLflow tracking server, with a model registry, over SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from demo.processes import free_port
from tests.worker.embedded import wait_for


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Its URL. The application that the command `mlflow server` starts, without the command: that takes twice the time, and leaves
    two processes more to be stopped."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "uvicorn", "mlflow.server.fastapi_app:app", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        running = subprocess.Popen(command, env=os.environ | given, stdout=log, stderr=log)

    def answers() -> bool:
        assert running.poll() is None, (folder / "server.log").read_text()
        try:
            return httpx.get(f"{url}/health", timeout=5).is_success
        except httpx.ConnectError:
            return False

    try:
        wait_for(answers, "MLflow's server", 200, lambda: (folder / "server.log").read_text())
        yield url
    finally:
        running.terminate()
        running.wait(30)
