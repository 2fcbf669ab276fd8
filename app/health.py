"""Liveness and readiness."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request

from app import broker
from app.errors import Problem
from app.jobs import queries
from app.problems import documented
from app.schema import require_current

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
async def alive() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Can jobs be accepted and run?", responses=documented("not_ready"))
def ready(request: Request) -> dict[str, Any]:
    """Database and its schema, broker, blob store, and a worker heard from."""
    state = request.app.state
    checks = {
        "database": _tried(lambda: require_current(state.db)),
        "broker": _tried(lambda: broker.reachable(state.celery)),
        "blobs": _tried(state.blobs.check),
        "worker": _tried(lambda: _a_worker(state)),
    }
    if bad := [name for name, outcome in checks.items() if outcome != "ok"]:
        raise Problem("not_ready", f"not ready: {', '.join(bad)}", checks=checks)
    return {"status": "ok", "checks": checks}


def _tried(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a part is what the answer tells
        return f"{type(error).__name__}: {error}"[:300]
    return "ok"


def _a_worker(state: Any) -> None:
    silent = state.settings.worker_silent_s
    with state.db.read() as session:
        if not queries.workers_seen_since(session, state.db.now(session) - timedelta(seconds=silent)):
            raise RuntimeError(f"no worker was heard from in the last {silent:g} s; start one with `make worker`")
