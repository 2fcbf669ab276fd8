"""A short campaign. `make chaos` is the long one."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.__main__ import carry_out, table
from tests.chaos.campaign import Outcome

pytestmark = pytest.mark.acceptance


@pytest.mark.timeout(600)
@pytest.mark.postgres
@pytest.mark.redis
def test_every_accepted_job_survives_what_happens_to_the_servers_and_to_us(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    outcome = carry_out(tmp_path, servers=True, seed=seed, faults=6, pause_s=1)
    assert outcome.wrong == [], f"seed {seed}\n{table(outcome)}"
    assert sum(outcome.faults.values()) == 6 and outcome.jobs["succeeded"] > 0


def test_a_breach_is_told_in_the_table() -> None:
    outcome = Outcome(0, faults=Counter(worker_killed=2), jobs=Counter(succeeded=1), wrong=["job_1 is stuck"])
    made = table(outcome)
    assert "| faults | worker killed | 2 |" in made and "| breaches |  | 1 |" in made and "- job_1 is stuck" in made
