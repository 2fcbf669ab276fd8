"""The page of two jobs side by side: what was asked for differently, what came of it, their pictures and their curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.dashboard import aligned, pictures, results
from app.dashboard.job import POINTS, SERIES
from app.dashboard.pages import page
from app.jobs import queries, service
from app.jobs.schemas import JobView
from app.tenancy import Tenant

router = APIRouter()
OFFERED = 100
"""The newest jobs, to choose from."""
SHOWN = ("source_only", "adapted")
NOT_YET = "A job has its pictures once it has succeeded."


@router.get("/compare")
def compare(
    request: Request,
    tenant: Tenant,
    job: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """With any other number of jobs than two, the choice alone."""
    db = request.app.state.db
    with db.read() as session:
        offered = queries.newest(session, tenant, status=[], labels={}, after=None, limit=OFFERED)
    choice = {"offered": {one.id: one.name or "without a name" for one in offered}, "chosen": job}
    if len(job) != 2:
        return page("compare.html", jobs=[], **choice)
    found = [service.read(db, tenant, one) for one in job]
    choice["offered"] |= {one.id: one.name or "without a name" for one in found}
    curves: dict[str, list[tuple[int, float]]] = {}
    strips = []
    for one in found:
        with db.read() as session:
            curves = queries.curves(session, tenant, one.id, points=POINTS, series=SERIES) | curves
            artifacts = queries.artifacts_of(session, tenant, one.id)
        shown = (
            pictures.of_job(request.app.state.blobs, artifacts, one.request.get("pictures"))
            if one.result is not None
            else NOT_YET
        )
        strips.append(shown)
    asked = [dict(flat(one.request)) for one in found]
    return page(
        "compare.html",
        **choice,
        jobs=[JobView.of(one) for one in found],
        differing=differences(*asked),
        same=sum(asked[0].get(path) == value for path, value in asked[1].items()),
        measures=measures([one.result for one in found]),
        groups=results.GROUPS,
        strips=strips,
        aligned=aligned.of_two(strips, [one.request for one in found]),
        kinds=pictures.KINDS,
        columns=pictures.COLUMNS,
        curves=dict(sorted(curves.items())),
    )


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested objects, as JSON, by its path with dots.

    >>> dict(flat({"seed": 0, "settings": {"weights": {"kl": 3.0}}}))
    {'seed': '0', 'settings.weights.kl': '3.0'}
    """
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{path}.{name}" if path else name)
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def differences(first: dict[str, str], second: dict[str, str]) -> list[tuple[str, str, str]]:
    """(path, the first job's value, the second's) of what is not the same; a dash where one has none."""
    paths = list(dict.fromkeys([*first, *second]))
    return [(path, first.get(path, "–"), second.get(path, "–")) for path in paths if first.get(path) != second.get(path)]


def measures(found: list[dict[str, Any] | None]) -> list[tuple[results.Measure, list[str]]]:
    """Each measure that one of the jobs has, with the values of SHOWN of the first job, then of the second."""
    tables = [{row.measure: row.values for row in results.rows(one)} for one in found]
    return [
        (measure, [table.get(measure, {}).get(model, "–") for table in tables for model in SHOWN])
        for measure in results.MEASURES
        if any(measure in table for table in tables)
    ]
