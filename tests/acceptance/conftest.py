"""The set-ups of tests/worker."""

from tests.worker.conftest import embedded, environment, small_data

__all__ = ["embedded", "environment", "small_data"]
