"""The source models' HTTP face."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app import threads, uploads
from app.errors import Problem
from app.pagination import Limit, Page, id_cursor, page_by_id
from app.problems import documented, parse
from app.source_models import queries, service
from app.source_models.schemas import SourceModelView
from app.spec import SourceModelDescription
from app.tenancy import Tenant

router = APIRouter(prefix="/source-models", tags=["source models"])

_EXAMPLE = {"architecture": "torchvision/resnet18", "classes": ["box", "mug"], "input": {"size": 64}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["description", "source_model"],
                    "properties": {
                        "description": {"$ref": "#/components/schemas/SourceModelDescription"},
                        "source_model": {
                            "type": "string",
                            "format": "binary",
                            "description": "safetensors or a torch state_dict",
                        },
                    },
                },
                "encoding": {"description": {"contentType": "application/json"}},
                "examples": {"a classifier of two classes": {"value": {"description": _EXAMPLE}}},
            }
        },
    }
}
_LOCATION = {"Location": {"schema": {"type": "string"}}}


@router.post(
    "",
    status_code=201,
    response_model=SourceModelView,
    openapi_extra=_BODY,
    summary="Upload a source model",
    responses={
        200: {"model": SourceModelView, "description": "The same file with the same description was here.", "headers": _LOCATION},
        201: {"description": "Stored: jobs can name it.", "headers": _LOCATION},
    }
    | documented(
        "invalid_request", "unknown_field", "missing_file", "malformed_json", "malformed_multipart", "unsupported_media_type",
        "payload_too_large", "empty_file", "unsafe_pickle", "archive_bomb", "source_model_format", "source_model_truncated",
        "storage_full", "quota_exceeded", "blobs_unavailable",
    ),
)  # fmt: skip
async def upload(request: Request, tenant: Tenant) -> Response:
    """Multipart: `description`, JSON that says how to read the weights, and `source_model`, the file of weights. It is
    never run: a pickle that asks for more than tensors is refused."""
    state = request.app.state
    received = await uploads.receive(
        request,
        texts=["description"],
        json_part="description",
        file_part="source_model",
        blobs=state.blobs,
        settings=state.settings,
    )
    with received:
        if "description" not in received.texts:
            raise Problem("malformed_multipart", "the part `description` is missing")
        description = await run_in_threadpool(parse, SourceModelDescription, received.texts["description"])
        service.require_units(description.input, "/input")
        if received.staged is None:
            raise Problem("missing_file", "no multipart part `source_model`", pointer="/source_model")
        model, new = await threads.check(
            request, service.store, state.db, state.blobs, state.settings, tenant, description, received.staged
        )
    view = SourceModelView.model_validate(model).model_dump(mode="json")
    return JSONResponse(view, 201 if new else 200, headers={"Location": f"/source-models/{model.id}"})


@router.get(
    "", response_model=Page[SourceModelView], summary="List source models, newest first", responses=documented("invalid_cursor")
)
def list_source_models(
    request: Request,
    tenant: Tenant,
    limit: Limit = 50,
    after: Annotated[str | None, Query(description="`next` of the previous page.")] = None,
) -> Any:
    with request.app.state.db.read() as session:
        models = queries.newest(session, tenant, after=id_cursor(after, "model"), limit=limit + 1)
    return page_by_id(models, limit, SourceModelView.model_validate)


@router.get("/{model_id}", response_model=SourceModelView, summary="Read a source model", responses=documented("not_found"))
def get_source_model(request: Request, model_id: str, tenant: Tenant) -> Any:
    return SourceModelView.model_validate(service.read(request.app.state.db, tenant, model_id))


@router.delete(
    "/{model_id}",
    status_code=204,
    summary="Delete a source model that no job names",
    responses=documented("not_found", "source_model_in_use"),
)
def delete(request: Request, model_id: str, tenant: Tenant) -> Response:
    service.delete(request.app.state.db, request.app.state.blobs, tenant, model_id)
    return Response(status_code=204)
