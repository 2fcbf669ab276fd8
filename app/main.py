"""create_app(): state, middleware, routers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import database, health, logs, observability, problems, threads, tracing
from app.artifacts import routes as artifacts
from app.blobs import open_blobs
from app.broker import make_celery
from app.cross_origin import own_names_alone, own_pages_alone
from app.dashboard import routes as dashboard
from app.database import Database
from app.datasets import routes as datasets
from app.datasets.schemas import DatasetDescription
from app.ids import new_id
from app.jobs import routes as jobs
from app.probes import Probes
from app.schema import require_current
from app.settings import Settings, Telemetry, read
from app.source_models import routes as source_models
from app.spec import JobRequest
from app.webhooks import routes as webhooks
from app.webhooks.schemas import WebhookRequest


def create_app(settings: Settings | None = None) -> FastAPI:
    """The front end. Refuses to start on a schema that it does not know."""
    if settings is None:
        logs.begin(settings := read())
    else:
        logs.configure(settings.log_format)
    telemetry = Telemetry()
    tracing.begin("modalbridge-front-end", telemetry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.db = Database(settings.sqlalchemy_url, database.ANSWER_S)
        require_current(app.state.db)
        app.state.blobs.prepare()
        yield
        app.state.db.dispose()
        await run_in_threadpool(tracing.end)

    app = FastAPIOffline(
        title="ModalBridge",
        version="0.1.0",
        summary="POST an RGB image classifier and references to your data; get back one for the new sensor.",
        redoc_url=None,
        dependencies=[Depends(problems.no_null_characters), Depends(own_names_alone), Depends(own_pages_alone)],
        lifespan=lifespan,
        telemetry={
            "tracing": telemetry.traces,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": tracing.untraced,
        },
    )
    app.state.settings = settings
    app.state.blobs = open_blobs(settings)
    app.state.celery = make_celery(settings)
    app.state.probes = Probes()
    app.state.checks = threads.checks()
    app.state.readiness = health.Readiness(app.state)
    app.state.metrics = observability.Metrics(app.state)
    app.add_middleware(RequestId)
    app.add_middleware(observability.Counted, metrics=app.state.metrics)
    problems.install(app)
    for router in (jobs.router, source_models.router, datasets.router, webhooks.router):
        app.include_router(router, dependencies=[Depends(problems.no_unknown_parameters)])
    for router in (artifacts.router, health.router, observability.router):
        app.include_router(router)
    dashboard.install(app)
    _describe_bodies(app)
    return app


class RequestId:
    """Each request has an id: in its answer, in its problem document and in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = request_id = new_id("req")

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


def _describe_bodies(app: FastAPI) -> None:
    """Adds the schemas of the bodies that routes read by themselves, streaming, to the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            known = document.setdefault("components", {}).setdefault("schemas", {})
            for unlike in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which problems.install has replaced
                known.pop(unlike, None)
            for operation in (one for verbs in document["paths"].values() for one in verbs.values()):
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    operation["responses"]["422"] = problems.documented("invalid_request")[422]
            for model in (JobRequest, DatasetDescription, WebhookRequest, problems.ProblemDocument):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                for name, part in {**schema.pop("$defs", {}), model.__name__: schema}.items():
                    known.setdefault(name, part)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
