"""What a page shows of a job's report.json: how well each class is told, where the evaluation set had labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field

from app.artifacts.table import Artifact
from app.blobs import Blobs
from app.dashboard import published

NAME = "report.json"
MOST_ROWS = 60
"""Classes of the table."""
MATRIX = 20
"""Classes up to which the whole matrix is shown."""
MIXED_UP = 20
"""Rows of what is shown in its place."""


class _Model(BaseModel):
    confusion: list[list[Annotated[int, Field(ge=0, le=2**53)]]]
    """Rows of the true class, columns of the predicted one."""


class _Labelled(BaseModel):
    source_only: _Model
    adapted: _Model


class _Evaluation(BaseModel):
    labelled: _Labelled | None


class _Source(BaseModel):
    classes: list[str]


class _Report(BaseModel):
    source_model: _Source
    evaluation: _Evaluation


@dataclass(frozen=True)
class ClassRow:
    name: str
    images: int
    source_only: float
    """Recall."""
    adapted: float


@dataclass(frozen=True)
class Cell:
    count: int
    heat: int
    """Share of the row, in tenths."""


@dataclass(frozen=True)
class ByClass:
    classes: list[str]
    rows: list[ClassRow]
    """Of the classes that occur; of more than MOST_ROWS those that the adapted model tells least well."""
    occurring: int
    matrix: list[list[Cell]]
    """Of the adapted model; empty where there are too many classes."""
    mixed_up: list[tuple[int, str, str]]
    """Instead: (images, true class, predicted class), the most frequent ones first."""


def by_class(blobs: Blobs, artifacts: Sequence[Artifact]) -> ByClass | str | None:
    """None where there are no labels; a text where there are some, and they cannot be shown here. Raises BlobsAwayError."""
    found = published.named(artifacts, NAME)
    if found is None:
        return None
    report = published.read(blobs, found, _Report)
    if isinstance(report, str):
        return report
    return _told(report.source_model.classes, report.evaluation.labelled) if report.evaluation.labelled else None


def _told(classes: list[str], labelled: _Labelled) -> ByClass | str:
    before, after = labelled.source_only.confusion, labelled.adapted.confusion
    if any(len(line) != len(classes) for matrix in (before, after) for line in (matrix, *matrix)):
        return f"{NAME} has a matrix that does not fit its classes: download it."
    counts = [sum(line) for line in after]
    rows = [
        ClassRow(name, counts[k], before[k][k] / max(sum(before[k]), 1), after[k][k] / counts[k])
        for k, name in enumerate(classes)
        if counts[k] > 0
    ]
    shown = rows if len(rows) <= MOST_ROWS else sorted(rows, key=lambda row: row.adapted)[:MOST_ROWS]
    small = len(classes) <= MATRIX
    matrix = [[Cell(n, round(10 * n / max(counts[k], 1))) for n in line] for k, line in enumerate(after)] if small else []
    mixed_up = [
        (n, classes[true], classes[said])
        for true, line in enumerate(after)
        for said, n in enumerate(line)
        if n > 0 and true != said
    ]
    return ByClass(classes, shown, len(rows), matrix, [] if small else sorted(mixed_up, reverse=True)[:MIXED_UP])
