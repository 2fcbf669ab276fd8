"""The set-ups of tests/worker."""

from tests.worker.conftest import embedded, environment, one_thread, small_data

__all__ = ["embedded", "environment", "one_thread", "small_data"]
