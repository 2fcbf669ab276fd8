"""The set-ups of tests/worker, and docker-compose.yml as it is read."""

from __future__ import annotations

from typing import Any

import pytest

from deploy import compose, stack
from tests.worker.conftest import embedded, environment, small_data

__all__ = ["embedded", "environment", "small_data"]


@pytest.fixture(scope="session")
def services() -> dict[str, dict[str, Any]]:
    """With every secret set."""
    return compose.read(stack.SECRETS | {"MODALBRIDGE_DATA": "/images"})["services"]
