"""What a page makes of a report that a job's process wrote: all of it is to be doubted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.blobs import LocalBlobs
from app.dashboard import published, report, results
from tests.dashboard import seeding


def told(folder: Path, document: Any, **changes: Any) -> report.ByClass | str | None:
    blobs, artifact = seeding.artifact(folder, "report.json", document, **changes)
    return report.by_class(blobs, [artifact])


def test_each_class_is_told_before_and_after(tmp_path: Path) -> None:
    found = told(tmp_path, seeding.report(["box", "mug"]))
    assert isinstance(found, report.ByClass)
    assert found.rows == [report.ClassRow("box", 20, 0.35, 0.75), report.ClassRow("mug", 20, 0.35, 0.75)]
    assert [[(cell.count, cell.heat) for cell in line] for line in found.matrix] == [[(15, 8), (5, 2)], [(5, 2), (15, 8)]]


def test_of_many_classes_the_worst_and_the_most_mixed_up_are_told(tmp_path: Path) -> None:
    document = seeding.report([f"class {k}" for k in range(100)])
    after = document["evaluation"]["labelled"]["adapted"]["confusion"]
    after[7] = [20 if k == 3 else 0 for k in range(100)]
    after[8] = [0] * 100
    found = told(tmp_path, document)
    assert isinstance(found, report.ByClass)
    assert (len(found.rows), found.occurring, found.matrix) == (60, 99, [])
    assert found.rows[0] == report.ClassRow("class 7", 20, 0.35, 0.0)
    assert found.mixed_up[0] == (20, "class 7", "class 3") and len(found.mixed_up) == 20


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"{", "not one that this page can read"),
        ({"evaluation": {"labelled": {}}}, "not one that this page can read"),
        (seeding.report(["a", "b"]) | {"source_model": {"classes": ["a"]}}, "does not fit its classes"),
    ],
)
def test_a_report_that_cannot_be_shown_is_said_to_be_so(tmp_path: Path, document: Any, words: str) -> None:
    found = told(tmp_path, document)
    assert isinstance(found, str) and words in found


@pytest.mark.parametrize("count", [10**400, -1, 2**53 + 1], ids=["endless", "negative", "inexact"])
def test_counts_that_no_set_of_images_can_have_are_not_shown(tmp_path: Path, count: int) -> None:
    document = seeding.report(["a", "b"])
    document["evaluation"]["labelled"]["source_only"]["confusion"][0][0] = count
    assert "not one that this page can read" in str(told(tmp_path, document))


def test_one_that_is_too_large_or_gone_is_not_read(tmp_path: Path) -> None:
    document = seeding.report(["a", "b"])
    assert "too large to be shown" in str(told(tmp_path, document, size=published.MOST_BYTES + 1))
    assert "not in the blob store" in str(told(tmp_path, document, blob_key="jobs/nothing"))


def test_without_labels_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert told(tmp_path, {"source_model": {"classes": ["a"]}, "evaluation": {"labelled": None}}) is None
    assert report.by_class(LocalBlobs(tmp_path), []) is None


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"accuracy": 3, "evidence": {"adapted": {"entropy_share": "high"}}, "pairs": [1]},
        {"accuracy": {"adapted": {"accuracy": 10**400}}},
    ],
)
def test_a_result_without_numbers_has_no_rows(result: Any) -> None:
    assert results.rows(result) == []
