"""What a client sees of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.states import Status
from app.jobs.table import Job


class Progress(BaseModel):
    phase: str
    step: int
    of: int
    fraction: float = Field(description="Of the whole job, 0 to 1.")
    eta_s: float | None = Field(None, description="Seconds that are left, by the steps measured so far.")
    images_per_s: float | None = None
    losses: dict[str, float] = {}


class Links(BaseModel):
    self: str
    events: str
    metrics: str
    artifacts: str
    model: str | None = Field(None, description="Once the job has succeeded.")


class JobView(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "job_01kb3x5v0nf2pamwx8h1q4c7ze",
                    "status": "running",
                    "phase": "bridging",
                    "progress": {"phase": "bridging", "step": 120, "of": 600, "fraction": 0.11, "eta_s": 412.0,
                                 "images_per_s": 88.0, "losses": {"L_rec": 0.031, "L_D": 0.69, "L_BN": 0.21}},
                    "name": "hall 3, depth cameras", "labels": {"team": "robots"}, "method": "tgmb_tgkt",
                    "source_model_id": "model_01kb3x5tqyd0h6v3k1m9w2r8ab", "attempt": 1, "lost_attempts": 0,
                    "request": {"method": "tgmb_tgkt", "seed": 0}, "result": None, "error": None,
                    "created_at": "2026-11-24T14:28:00Z", "queued_at": "2026-11-24T14:28:00Z",
                    "started_at": "2026-11-24T14:28:01Z", "finished_at": None, "updated_at": "2026-11-24T14:28:40Z",
                    "links": {"self": "/jobs/job_01kb3x5v0nf2pamwx8h1q4c7ze", "events": "/jobs/job_01kb3x5v0nf2pamwx8h1q4c7ze/events",
                              "metrics": "/jobs/job_01kb3x5v0nf2pamwx8h1q4c7ze/metrics",
                              "artifacts": "/jobs/job_01kb3x5v0nf2pamwx8h1q4c7ze/artifacts", "model": None},
                }
            ]
        }
    )  # fmt: skip

    id: str
    name: str | None
    labels: dict[str, str]
    status: Status
    phase: str | None = Field(description="While it runs: preparing, bridging, transferring, evaluating, publishing.")
    progress: Progress | None
    method: str
    source_model_id: str
    request: dict[str, Any] = Field(description="As accepted: every default filled in.")
    result: dict[str, Any] | None
    error: dict[str, Any] | None = Field(description="A problem document: why it failed and what to do.")
    attempt: int
    lost_attempts: int
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    trace_id: str | None = Field(None, description="Of its OpenTelemetry trace, if the service sends any.")
    links: Links

    @classmethod
    def of(cls, job: Job) -> JobView:
        here = f"/jobs/{job.id}"
        links = Links(
            self=here,
            events=f"{here}/events",
            metrics=f"{here}/metrics",
            artifacts=f"{here}/artifacts",
            model=f"{here}/model" if job.status == Status.SUCCEEDED else None,
        )
        own = {name: getattr(job, name) for name in cls.model_fields if hasattr(job, name)}
        return cls.model_validate(own | {"labels": job.request.get("labels", {}), "links": links})


class EventView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    seq: int = Field(description="Counts from 1 within the job; a cursor.")
    attempt: int
    at: datetime
    kind: str = Field(description="state, phase, started, data, checkpoint, warning or log.")
    message: str
    data: dict[str, Any] | None


class MetricPoint(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    series: str = Field(examples=["bridging/L_rec"])
    step: int
    value: float


class ArtifactView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str = Field(examples=["model.safetensors"])
    media_type: str
    size: int
    sha256: str
    attempt: int
    created_at: datetime
    url: str
