"""A worker on a machine whose clock is wrong. Leases and times are the database's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook as Verifier

from app.jobs.table import Worker
from tests.webhook_receiver import receiver
from tests.worker.conftest import embedded_in
from tests.worker.embedded import QUICK, wait_for
from tests.worker.test_webhooks import listen

PASS_S = 6.0


@pytest.mark.postgres
def test_a_worker_whose_clock_is_hours_ahead_hears_runs_and_tells_like_any_other(
    tmp_path: Path, new_database_url: Callable[[str], str], small_data: Path
):
    with embedded_in(tmp_path, new_database_url("postgres"), small_data) as embedded, receiver(204) as at:
        private = {"webhook_private_hosts": ("127.0.0.1",)}
        webhook = listen(embedded.process(**private), at)
        with embedded.worker(ahead_s=2 * 3600, housekeeping_s=PASS_S, worker_silent_s=3 * PASS_S, **private):

            def known() -> bool:
                with embedded.db.read() as session:
                    return bool(session.scalar(sa.select(sa.func.count(Worker.id))))

            wait_for(known, "the worker's row")
            job_id = embedded.submit(**QUICK)
            # By the wake-up: the next pass, with a message of its own, comes later.
            embedded.until(job_id, "running", "succeeded", seconds=PASS_S / 2)
            job = embedded.until(job_id, "succeeded")
            wait_for(lambda: at.got, "the webhook", 4 * PASS_S)
        with embedded.db.read() as session:
            now = embedded.db.now(session)
        assert timedelta(0) < now - job.finished_at < timedelta(minutes=5)
        assert job.created_at < job.started_at < job.finished_at and job.lost_attempts == 0
        ((headers, body),) = at.got
        Verifier(webhook.secret).verify(body, headers)  # which refuses what is five minutes old, or from as far ahead
