from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest

from app.dashboard import compare, formats, job


@pytest.mark.parametrize("module", [formats, compare, job])
def test_the_examples_are_true(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried > 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "just now"), (4, "just now"), (59, "59 s ago"), (60, "1 min ago"), (7_300, "2 h ago"), (200_000, "2 d ago")]
)  # fmt: skip
def test_how_long_ago_something_was(seconds: float, words: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert formats.ago(now - timedelta(seconds=seconds), now) == words
