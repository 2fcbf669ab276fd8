"""The datasets' HTTP face."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app import threads, uploads
from app.datasets import queries, service
from app.datasets.schemas import DatasetDescription, DatasetView
from app.errors import Problem
from app.pagination import Limit, Page, id_cursor, page_by_id
from app.problems import documented, in_one_line, parse
from app.tenancy import Tenant

router = APIRouter(prefix="/datasets", tags=["datasets"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["dataset"],
                    "properties": {
                        "description": {"$ref": "#/components/schemas/DatasetDescription"},
                        "dataset": {"type": "string", "format": "binary", "description": "zip, tar or tar.gz"},
                    },
                },
                "encoding": {"description": {"contentType": "application/json"}},
                "examples": {"an archive with a name": {"value": {"description": {"name": "hall 3"}}}},
            }
        },
    }
}
_LOCATION = {"Location": {"schema": {"type": "string"}}}


@router.post(
    "",
    status_code=201,
    response_model=DatasetView,
    openapi_extra=_BODY,
    summary="Upload a dataset",
    responses={
        200: {"model": DatasetView, "description": "The same archive was here.", "headers": _LOCATION},
        201: {"description": "Stored: jobs can name it as `dataset://` and its id.", "headers": _LOCATION},
    }
    | documented(
        "invalid_request", "unknown_field", "missing_file", "malformed_json", "malformed_multipart", "unsupported_media_type",
        "payload_too_large", "empty_file", "archive_format", "archive_damaged", "archive_unsafe", "archive_bomb", "no_images",
        "storage_full", "quota_exceeded", "blobs_unavailable",
    ),
)  # fmt: skip
async def upload(request: Request, tenant: Tenant) -> Response:
    """Multipart: `dataset`, an archive of images, and `description`, JSON that may be left out. The archive is read to its end
    before it is taken: links, devices, absolute names and `..` are refused, and what would unpack to far too much."""
    state = request.app.state
    received = await uploads.receive(
        request,
        texts=["description"],
        json_part="description",
        file_part="dataset",
        blobs=state.blobs,
        settings=state.settings,
        max_file_bytes=state.settings.max_dataset_bytes,
    )
    with received:
        description = DatasetDescription()
        if (text := received.texts.get("description")) is not None:
            description = await run_in_threadpool(parse, DatasetDescription, text)
        in_one_line(description.name, "/name")
        if received.staged is None:
            raise Problem("missing_file", "no multipart part `dataset`", pointer=service.POINTER)
        dataset, new = await threads.check(
            request, service.store, state.db, state.blobs, state.settings, tenant, description.name, received.staged
        )
    view = DatasetView.model_validate(dataset).model_dump(mode="json")
    return JSONResponse(view, 201 if new else 200, headers={"Location": f"/datasets/{dataset.id}"})


@router.get("", response_model=Page[DatasetView], summary="List datasets, newest first", responses=documented("invalid_cursor"))
def list_datasets(
    request: Request,
    tenant: Tenant,
    limit: Limit = 50,
    after: Annotated[str | None, Query(description="`next` of the previous page.")] = None,
) -> Any:
    with request.app.state.db.read() as session:
        datasets = queries.newest(session, tenant, after=id_cursor(after, "dataset"), limit=limit + 1)
    return page_by_id(datasets, limit, DatasetView.model_validate)


@router.get("/{dataset_id}", response_model=DatasetView, summary="Read a dataset", responses=documented("not_found"))
def get_dataset(request: Request, dataset_id: str, tenant: Tenant) -> Any:
    return DatasetView.model_validate(service.read(request.app.state.db, tenant, dataset_id))


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete a dataset that no job names",
    responses=documented("not_found", "dataset_in_use"),
)
def delete(request: Request, dataset_id: str, tenant: Tenant) -> Response:
    service.delete(request.app.state.db, request.app.state.blobs, tenant, dataset_id)
    return Response(status_code=204)
