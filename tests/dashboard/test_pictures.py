"""What a page makes of a picture strip that a job's process wrote: all of it is to be doubted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.artifacts.table import Artifact
from app.dashboard import form, pictures, published
from app.spec import JobRequest
from tests.conftest import Service
from tests.dashboard import seeding
from tests.dashboard.html import SVG, checked

SPRITE = Artifact(name="pictures.webp")


def told(folder: Path, document: Any, *others: Artifact, **changes: Any) -> pictures.Strip | str:
    blobs, artifact = seeding.artifact(folder, "pictures.json", document, **changes)
    return pictures.of_job(blobs, [artifact, *others], 6)


def altered(**changes: Any) -> dict[str, Any]:
    return seeding.pictures(["box", "mug"]) | changes


def with_row(**changes: Any) -> dict[str, Any]:
    document = altered()
    document["rows"][0] |= changes
    return document


def test_rows_come_by_kind_with_the_columns_and_models_that_they_have(tmp_path: Path) -> None:
    found = told(tmp_path, altered(), SPRITE)
    assert isinstance(found, pictures.Strip)
    assert [(group.kind, group.columns, group.models) for group in found.groups] == [
        ("target", ["sensor", "translation"], ["source_only", "bridged", "adapted"]),
        ("evaluation", ["sensor", "translation"], ["source_only", "bridged", "adapted"]),
        ("pair", ["sensor", "translation", "rgb"], ["rgb", "source_only", "bridged", "adapted"]),
    ]
    assert [group.rows[0].changed for group in found.groups] == [True, True, False]


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        altered(rows=altered()["rows"] * 22),
        altered(tile=0),
        altered(width=10**9),
        altered(height=100),
        with_row(kind="<svg>"),
        with_row(tiles={"sensor": [-1, 0]}),
        with_row(tiles={"sensor": ["0 0 9 9\"><script>", 0]}),
        with_row(answers={"adapted": {"class": "mug", "confidence": 7}}),
        with_row(answers={"adapted": {"class": ["mug"], "confidence": 0.5}}),
        with_row(name=None),
    ],
    ids=str,
)  # fmt: skip
def test_a_strip_that_cannot_be_shown_is_said_to_be_so(tmp_path: Path, document: Any) -> None:
    assert "not one that this page can read" in str(told(tmp_path, document, SPRITE))


def test_one_that_is_too_large_gone_or_without_its_sprite_is_not_shown(tmp_path: Path) -> None:
    assert "too large" in str(told(tmp_path, altered(), SPRITE, size=published.MOST_BYTES + 1))
    assert "not in the blob store" in str(told(tmp_path, altered(), SPRITE, blob_key="jobs/nothing"))
    assert told(tmp_path, altered()) == "It published no pictures.webp."
    assert told(tmp_path, altered(rows=[]), SPRITE) == "pictures.json has no rows."


def test_without_pictures_the_page_says_why(service: Service, data: Path) -> None:
    quiet, older, odd = (seeding.submitted(service, data, pictures=n) for n in (0, 6, 6))
    strange = {"pictures__json": json.dumps(with_row(tiles={}, answers={})).encode(), "pictures__webp": b"RIFF, and no more"}
    for job_id, files in ((quiet, {}), (older, {}), (odd, strange)):
        seeding.publish(service, seeding.claimed(service, job_id), seeding.result("deploy", []), **files)
    assert "None were asked for: its request says pictures: 0." in checked(service.client.get(f"/dashboard/jobs/{quiet}")).text
    assert "It published none." in checked(service.client.get(f"/dashboard/jobs/{older}")).text
    shown = checked(service.client.get(f"/dashboard/jobs/{odd}"))
    assert len([svg for svg in shown.all(SVG + "svg") if svg.get("role") == "img"]) == 5, "of the other two rows"


def test_the_form_offers_the_default() -> None:
    (field,) = (field for field in form.FIELDS if field.name == "pictures")
    assert field.default == str(JobRequest.model_fields["pictures"].default)
