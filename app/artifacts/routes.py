"""Downloads: list, one file, the model. `ETag` is the file's sha256; `Range` resumes."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from app.artifacts.download import answer
from app.artifacts.table import Artifact
from app.blobs import Reading
from app.conditional import Conditions, http_date
from app.errors import Problem
from app.jobs import queries, service
from app.jobs.schemas import ArtifactView
from app.jobs.states import Status
from app.jobs.table import Job
from app.pagination import Page
from app.problems import documented
from app.tenancy import Tenant

router = APIRouter(prefix="/jobs/{job_id}", tags=["artifacts"])
MODEL = "model.safetensors"
_CACHED = "private, no-cache"
_FILE = {
    200: {
        "description": "The whole file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {"description": "The range asked for."},
    304: {"description": "You have this file: its sha256 is in If-None-Match, or it is no newer than If-Modified-Since."},
} | documented("not_found", "job_not_succeeded", "precondition_failed", "range_not_satisfiable", "blobs_unavailable")


@router.get(
    "/artifacts", response_model=Page[ArtifactView], summary="List what a job has published", responses=documented("not_found")
)
def list_artifacts(request: Request, job_id: str, tenant: Tenant) -> Any:
    """Empty until the job has succeeded: publication is all or nothing."""
    service.read(request.app.state.db, tenant, job_id)
    with request.app.state.db.read() as session:
        found = queries.artifacts_of(session, tenant, job_id)
    return Page(data=[_view(artifact) for artifact in found])


def _view(artifact: Artifact) -> ArtifactView:
    own = {name: getattr(artifact, name) for name in ArtifactView.model_fields if name != "url"}
    return ArtifactView(**own, url=f"/jobs/{artifact.job_id}/artifacts/{artifact.name}")


@router.head("/artifacts/{name}", include_in_schema=False)
@router.get("/artifacts/{name}", response_class=StreamingResponse, summary="Download an artifact", responses=_FILE)
def download(
    request: Request,
    job_id: str,
    name: str,
    tenant: Tenant,
    conditions: Annotated[Conditions, Header()],
) -> Response:
    with request.app.state.db.read() as session:
        artifact = queries.artifact(session, tenant, job_id, name)
    if artifact is None:
        job = service.read(request.app.state.db, tenant, job_id)
        if job.status != Status.SUCCEEDED:
            raise Problem("job_not_succeeded", f"{job.id} is {job.status}")
        raise Problem("not_found", f"{job.id} has no artifact {name[:100]!r}{_refused(job, name)}")
    etag = f'"{artifact.sha256}"'
    written_at = artifact.created_at.astimezone(UTC).replace(microsecond=0)
    if conditions.refuse(etag, written_at):
        raise Problem("precondition_failed", f"the ETag of {artifact.name} is {etag}, and it is of {http_date(written_at)}")
    if conditions.know(etag, written_at):
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": _CACHED})
    blobs, key = request.app.state.blobs, artifact.blob_key
    style = "inline" if artifact.media_type.startswith("text/html") else "attachment"

    def read(start: int, end: int) -> Reading:
        try:
            return blobs.read(key, start, end)
        except FileNotFoundError as error:  # deleted between the look at its row and now
            raise Problem("not_found", f"{artifact.name} of {job_id} is gone") from error

    return answer(
        request,
        read,
        size=artifact.size,
        media_type=artifact.media_type,
        etag=etag,
        written_at=written_at,
        headers={
            "Content-Disposition": f'{style}; filename="{artifact.name}"',
            "Cache-Control": _CACHED,
            # A report is made by a job from a client's own words: it may show itself, and do nothing.
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _refused(job: Job, name: str) -> str:
    """Why an output that was asked for is not there."""
    told = (job.result or {}).get("outputs")
    outputs = told.values() if isinstance(told, dict) else ()
    found = (one for one in outputs if isinstance(one, dict) and one.get("file") == name and not one.get("published"))
    return next((f": {one.get('reason')}" for one in found), "")


@router.head("/model", include_in_schema=False)
@router.get("/model", response_class=StreamingResponse, summary="Download the adapted model", responses=_FILE)
def model(
    request: Request,
    job_id: str,
    tenant: Tenant,
    conditions: Annotated[Conditions, Header()],
) -> Response:
    """The adapted model's weights, safetensors. artifacts/model.json says how to load them."""
    return download(request, job_id, MODEL, tenant, conditions)
