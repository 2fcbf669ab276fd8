"""The picture strips of two jobs beside each other, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.dashboard.pictures import COLUMNS, Row, Strip

REFERENCES = {"target": "target", "evaluation": "evaluation", "pair": "pairs"}
"""Kind of a row -> what the request calls the data that its images are of."""
MODELS = ("rgb", "source_only", "adapted")
"""Without `bridged`, which is between the two: with it the table is wider than a page."""
Which = Literal[0, 1]


@dataclass(frozen=True)
class Column:
    """which: the job that it is of; None: it is the same for both."""

    name: str
    which: Which | None


@dataclass(frozen=True)
class Group:
    """Images of one kind that both strips have. tiles, answers: columns."""

    kind: str
    tiles: list[Column]
    answers: list[Column]
    rows: list[tuple[Row, Row]]


def of_two(strips: Sequence[Strip | str], requests: Sequence[Mapping[str, Any]]) -> list[Group] | str:
    """A text where there is nothing to show: why. requests: of both jobs. Names of files are held against each other only where both
    name the same place."""
    for strip, which in zip(strips, ("first", "second"), strict=True):
        if isinstance(strip, str):
            return f"The {which} job has none to compare. {strip}"
    found = []
    same_input = requests[0]["source_model"] == requests[1]["source_model"]
    for kind, reference in REFERENCES.items():
        asked = [one["data"].get(reference) or {} for one in requests]
        if asked[0].get("uri") != asked[1].get("uri"):
            continue
        theirs, others = ({row.name: row for row in _rows(strip, kind)} for strip in strips)
        if rows := [(row, others[name]) for name, row in theirs.items() if name in others]:
            found.append(_group(kind, rows, same_input and asked[0] == asked[1]))
    return found or "Their strips have no image in common: those are chosen from the data that each job names."


def _rows(strip: Strip | str, kind: str) -> list[Row]:
    return [row for group in strip.groups if group.kind == kind for row in group.rows] if isinstance(strip, Strip) else []


def _group(kind: str, rows: list[tuple[Row, Row]], read_alike: bool) -> Group:
    """read_alike: an image is the same before it enters a network, whichever of the jobs it is of."""
    tiles = [
        column
        for name in COLUMNS
        for column in _columns(name, [[name in one.tiles for one in row] for row in rows], read_alike and name != "translation")
    ]
    answers = [
        column
        for name in MODELS
        for column in _columns(
            name,
            [[name in one.answers for one in row] for row in rows],
            all(first.answers.get(name) == second.answers.get(name) for first, second in rows),
        )
    ]
    return Group(kind, tiles, answers, rows)


def _columns(name: str, there: list[list[bool]], same: bool) -> list[Column]:
    """there: for each row, whether each of the two jobs has it."""
    of: list[Which] = [which for which in (0, 1) if any(row[which] for row in there)]
    return [Column(name, None)] if same and len(of) == 2 else [Column(name, which) for which in of]
