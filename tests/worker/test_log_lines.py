"""The log of real processes, as a collector of logs reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest

from demo.processes import WORKER, end, free_port, start, until_ready
from tests.worker.embedded import Embedded


@pytest.mark.acceptance
def test_as_json_each_line_is_an_object_but_celerys_farewell(embedded: Embedded, tmp_path: Path) -> None:
    env, port = embedded.environment(log_format="json"), free_port()
    commands = {
        "front-end": ("uvicorn", "--factory", "app.main:create_app", "--port", str(port)),
        "worker": ("celery", "--app", "worker.celery_app", "worker", *WORKER, "--loglevel", "INFO"),
    }
    running = {
        name: start([sys.executable, "-W", "ignore", "-m", *line], env, tmp_path / f"{name}.log")
        for name, line in commands.items()
    }
    try:
        until_ready(f"http://127.0.0.1:{port}", running, tmp_path)
        httpx.get(f"http://127.0.0.1:{port}/jobs?no=such")
    finally:
        end(list(running.values()))
    said = {}
    for name in commands:
        lines = [line for line in (tmp_path / f"{name}.log").read_text().splitlines() if line]
        said[name] = [json.loads(line) for line in lines if line != "worker: Warm shutdown (MainProcess)"]
        assert all({"event", "level", "timestamp"} <= line.keys() for line in said[name])
    assert any('"GET /jobs?no=such HTTP/1.1" 422' in line["event"] for line in said["front-end"])
    assert any(line["event"].startswith("Connected to") and line["level"] == "info" for line in said["worker"])
