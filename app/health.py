"""Liveness and readiness."""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import State

from app import broker
from app.errors import Problem
from app.jobs import queries
from app.probes import Question
from app.problems import documented
from app.schema import require_current

LIMIT_S = 5.0
"""For all parts together, which are asked at the same time."""
router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?")
async def alive() -> dict[str, str]:
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Can jobs be accepted and run?", responses=documented("not_ready"))
async def ready(request: Request) -> dict[str, Any]:
    """Database and its schema, broker, blob store, and a worker heard from. Answers within some seconds, whatever hangs."""
    state: Any = request.app.state
    checks = await state.probes.tell(state.readiness.checks)
    if bad := [name for name, outcome in checks.items() if outcome != "ok"]:
        raise Problem("not_ready", f"not ready: {', '.join(bad)}", checks=checks)
    return {"status": "ok", "checks": checks}


class Readiness:
    def __init__(self, state: State) -> None:
        self._parts = {
            "database": Question(lambda: require_current(state.db), "database"),
            "broker": Question(lambda: broker.reachable(state.celery), "broker"),
            "blobs": Question(lambda: state.blobs.check(), "blobs"),
            "worker": Question(lambda: _a_worker(state), "worker"),
        }

    def checks(self) -> dict[str, str]:
        """`ok`, or what is wrong, by part."""
        until = time.monotonic() + LIMIT_S
        answers = {name: question.put() for name, question in self._parts.items()}
        return {name: _told(answer, until) for name, answer in answers.items()}


def _told(answer: Future[None], until: float) -> str:
    if wait([answer], max(until - time.monotonic(), 0.0)).not_done:
        return f"no answer within {LIMIT_S:g} s"
    try:
        answer.result()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a part is what the answer tells
        return f"{type(error).__name__}: {error}"[:300]
    return "ok"


def _a_worker(state: Any) -> None:
    silent = state.settings.worker_silent_s
    with state.db.read() as session:
        if not queries.workers_seen_since(session, state.db.now(session) - timedelta(seconds=silent)):
            raise RuntimeError(f"no worker was heard from in the last {silent:g} s; start one with `make worker`")
