"""The webhooks' HTTP face."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app import uploads
from app.pagination import Limit, Page, id_cursor, page_by_id
from app.problems import documented, parse
from app.tenancy import Tenant
from app.webhooks import queries, service
from app.webhooks.schemas import DeliveryView, NewWebhookView, WebhookRequest, WebhookView

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/WebhookRequest"}}},
    }
}
Cursor = Annotated[str | None, Query(description="`next` of the previous page.")]


@router.post(
    "",
    status_code=201,
    response_model=NewWebhookView,
    openapi_extra=_BODY,
    summary="Be told of jobs",
    responses={201: {"description": "Made; `secret` is shown this once.", "headers": {"Location": {"schema": {"type": "string"}}}}}
    | documented(
        "invalid_request", "unknown_field", "malformed_json", "unsupported_media_type", "payload_too_large", "webhook_url",
        "too_many_webhooks",
    ),
)  # fmt: skip
async def create(request: Request, tenant: Tenant) -> Response:
    """Messages are signed as Standard Webhooks has it, are sent at least once, and are tried again for about a day."""
    state = request.app.state
    wanted = await run_in_threadpool(parse, WebhookRequest, await uploads.receive_json(request, state.settings))
    webhook = await run_in_threadpool(service.create, state.db, state.settings, tenant, wanted)
    view = NewWebhookView.model_validate(webhook).model_dump(mode="json")
    return JSONResponse(view, 201, headers={"Location": f"/webhooks/{webhook.id}"})


@router.get("", response_model=Page[WebhookView], summary="List webhooks, newest first", responses=documented("invalid_cursor"))
def list_webhooks(request: Request, tenant: Tenant, limit: Limit = 50, after: Cursor = None) -> Any:
    with request.app.state.db.read() as session:
        found = queries.newest(session, tenant, after=id_cursor(after, "webhook"), limit=limit + 1)
    return page_by_id(found, limit, WebhookView.model_validate)


@router.get("/{webhook_id}", response_model=WebhookView, summary="Read a webhook", responses=documented("not_found"))
def get_webhook(request: Request, webhook_id: str, tenant: Tenant) -> Any:
    return service.read(request.app.state.db, tenant, webhook_id)


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook", responses=documented("not_found"))
def delete(request: Request, webhook_id: str, tenant: Tenant) -> Response:
    """What is pending for it is not sent."""
    service.delete(request.app.state.db, tenant, webhook_id)
    return Response(status_code=204)


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    response_model=DeliveryView,
    summary="Have a test message sent",
    responses=documented("not_found", "webhook_gone"),
)
def test(request: Request, webhook_id: str, tenant: Tenant) -> Any:
    return service.test(request.app.state.db, tenant, webhook_id)


@router.get(
    "/{webhook_id}/deliveries",
    response_model=Page[DeliveryView],
    summary="What was and is to be sent to it, newest first",
    responses=documented("not_found", "invalid_cursor"),
)
def list_deliveries(request: Request, webhook_id: str, tenant: Tenant, limit: Limit = 50, after: Cursor = None) -> Any:
    db = request.app.state.db
    service.read(db, tenant, webhook_id)
    with db.read() as session:
        found = queries.deliveries(session, tenant, webhook_id, after=id_cursor(after, "msg"), limit=limit + 1)
    return page_by_id(found, limit, DeliveryView.model_validate)
