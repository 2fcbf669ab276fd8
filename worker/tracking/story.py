"""What there is to tell of a job, read from SQL, in the terms of MLflow: parameters, tags, metric points. No MLflow in here."""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.artifacts.table import Artifact
from app.jobs import queries
from app.jobs.states import Status
from app.jobs.table import Job, JobMetric
from app.references import shown
from app.source_models.table import SourceModel
from app.spec import FORMATS

PREFIX = "modalbridge."
JOB_ID = f"{PREFIX}job_id"
"""The tag by which a job's run is found again."""
LONGEST = 500
"""Of a parameter or a tag: what every version of MLflow takes."""
RUN_STATUS = {
    Status.QUEUED: "SCHEDULED",
    Status.RUNNING: "RUNNING",
    Status.CANCELLING: "RUNNING",
    Status.SUCCEEDED: "FINISHED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "KILLED",
}
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,62}")
_ODD = re.compile(r"[^\w.\- /:]")


@dataclass(frozen=True)
class Point:
    series: str
    step: int
    value: float
    at: datetime


@dataclass(frozen=True)
class Story:
    """points: those that were written after the time asked for, by time. started: of the last attempt, as its process said."""

    job: Job
    source_model: SourceModel
    started: dict[str, Any]
    artifacts: list[Artifact]
    points: list[Point]


def read(session: Session, job_id: str, *, after: datetime | None) -> Story | None:
    """None: the job is deleted."""
    if (job := session.get(Job, job_id)) is None:
        return None
    at = sa.func.coalesce(JobMetric.at, sa.literal(job.started_at, JobMetric.at.type), type_=JobMetric.at.type)
    query = sa.select(JobMetric.series, JobMetric.step, JobMetric.value, at).where(JobMetric.job_id == job_id)
    if after is not None:
        query = query.where(at > sa.literal(after, JobMetric.at.type))
    started = queries.events_of_kind(session, job.tenant_id, job_id, ["started"], limit=1)
    return Story(
        job=job,
        source_model=session.get_one(SourceModel, job.source_model_id),
        started=(started[0].data or {}) if started else {},
        artifacts=list(queries.artifacts_of(session, job.tenant_id, job_id)),
        points=[Point(*row) for row in session.execute(query.order_by(at, JobMetric.series, JobMetric.step))],
    )


def request(story: Story) -> dict[str, Any]:
    """As accepted; of references, what may be passed on."""
    data = {
        name: given | {"uri": shown(given["uri"])} if isinstance(given, dict) else given
        for name, given in story.job.request["data"].items()
    }
    return story.job.request | {"data": data}


def params(story: Story) -> dict[str, str]:
    """What the outcome depends on, flat: `settings.bridging.steps` and the like."""
    given = {name: value for name, value in request(story).items() if name not in ("name", "labels", "priority")}
    model = story.source_model
    of_model = {
        "architecture": model.description["architecture"],
        "classes": len(model.description["classes"]),
        "input": model.description["input"],
        "sha256": model.sha256,
    }
    return dict(_flat(given | {"source_model": given["source_model"] | of_model}))


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """
    >>> _flat({"a": {"b": 1, "c": None}, "d": ["x"], "e": "f"})
    [('a.b', '1'), ('d', '["x"]'), ('e', 'f')]
    """
    found: list[tuple[str, str]] = []
    for name, one in value.items():
        if isinstance(one, dict):
            found += _flat(one, f"{before}{name}.")
        elif one is not None:
            found.append((f"{before}{name}", cut(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False))))
    return found


def tags(story: Story) -> dict[str, str]:
    """What a run is found by, and how its job stands. Empty where it said something once and does no longer."""
    job, started = story.job, story.started
    told = {
        "job_id": job.id,
        "tenant_id": job.tenant_id,
        "status": job.status,
        "phase": job.phase,
        "attempt": job.attempt,
        "lost_attempts": job.lost_attempts,
        "request_digest": job.request_digest,
        "device": started.get("device_name"),
        "precision": started.get("precision"),
        "verdict": (job.result or {}).get("verdict"),
        "error_code": (job.error or {}).get("code"),
        "error": (job.error or {}).get("detail"),
    }
    told |= {f"version.{name}": version for name, version in started.get("versions", {}).items()}
    told |= {f"sha256.{one.name}": one.sha256 for one in story.artifacts if one.name in FORMATS.values()}
    ours = {f"{PREFIX}{name}": "" if value is None else cut(str(value)) for name, value in told.items()}
    labels = {f"label.{name}": cut(value) for name, value in job.request.get("labels", {}).items()}
    return ours | labels


def registered_name(template: str, story: Story) -> str | None:
    """The registered model that the job's is a version of; None: of none, as a label that the name is made of is not there, or is
    nothing to make a name of."""
    labels = story.job.request.get("labels", {})
    values = {name: labels.get(name, "") for name in re.findall(r"\{([^}]*)\}", template)}
    if not all(_PART.fullmatch(value) for value in values.values()):
        return None
    return re.sub(r"\{([^}]*)\}", lambda found: values[found[1]], template) or None


def metric_name(series: str) -> str:
    """
    >>> metric_name("bridging/L_rec"), metric_name("/a//../b?")
    ('bridging/L_rec', 'a/b_')
    """
    parts = [part for part in _ODD.sub("_", series).split("/") if part.strip(". ")]
    return posixpath.join(*parts) if parts else "_"


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
