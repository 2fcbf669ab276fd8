"""What the benchmarks ask of a running service, over HTTP: submit, follow, and tell how long it took."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx


def submit(client: httpx.Client, request: dict[str, Any], weights: Path) -> str:
    """The job's address. Raises RuntimeError with the problem document if it is refused."""
    with weights.open("rb") as file:
        answer = client.post(
            "/jobs", files={"request": (None, json.dumps(request), "application/json"), "source_model": (weights.name, file)}
        )
    if answer.status_code != 202:
        raise RuntimeError(f"refused: {answer.text}")
    return answer.headers["location"]


def follow(client: httpx.Client, address: str) -> dict[str, Any]:
    """The job, once it is in a final state; its phases are told on stderr. Held polls: a few a minute."""
    phase = None
    while True:
        job = client.get(address, params={"wait": 30}, timeout=60).json()
        if job["phase"] != phase:
            phase = job["phase"]
            print(f"{job['status']}: {phase}", file=sys.stderr)
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job


def seconds(job: dict[str, Any]) -> float:
    """From the claim to the end, by the service's own clock."""
    began, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return (ended - began).total_seconds()
