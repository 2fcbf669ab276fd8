"""A stage of a job: its losses, and what it comes to in the progress of the job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from app.spec import AdaptationSpec
from worker.adaptation import checkpoint, losses
from worker.adaptation.events import Progress, parse
from worker.adaptation.job import Job
from worker.adaptation.journal import Journal
from worker.adaptation.stage import Stage

from .conftest import spec


@contextmanager
def a_job(folder: Path, device: torch.device, work: dict[str, float]) -> Iterator[Job]:
    written = AdaptationSpec.model_validate(spec(folder))
    with Path(os.devnull).open("wb") as nobody:
        journal = Journal(nobody.fileno(), folder)
        yield Job(written, folder, journal, device, "fp32", None, None, None, {}, 1e9, work)
        journal.close()


def test_a_loss_that_was_made_on_the_cpu_is_summed_on_the_jobs_device(tmp_path):
    """As L_BN of a model without batch norms is; torch's meta device refuses to mix as CUDA does."""
    elsewhere = torch.device("meta")
    with a_job(tmp_path, elsewhere, {}) as job:
        stage = Stage(job, "bridging", 5, {}, {})
        for _ in range(2):
            stage.advance({"L_rec": torch.zeros((), device=elsewhere), "L_BN": losses.L_BN([], []), "L_d": losses.L_d([], [])}, 8)
    assert {name: total.device.type for name, total in stage.sums.items()} == dict.fromkeys(("L_rec", "L_BN", "L_d"), "meta")


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("done", [0, 25, 100])
def test_what_a_stage_leaves_undone_is_neither_done_nor_to_do(done, resumed, tmp_path):
    with a_job(tmp_path, torch.device("cpu"), {"bridging": 300.0, "transferring": 60.0, "evaluating": 40.0}) as job:
        stage = Stage(job, "bridging", 100, {}, {})
        for _ in range(done):
            stage.advance({}, 8)
        stage.finish({})
        if resumed:
            job.finished = checkpoint.load(tmp_path)["finished"]
        job.progress("transferring", 30, 30, 2.0, {})
    said = [parse(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    last = [event for event in said if isinstance(event, Progress)][-1]
    bridged = 3.0 * done
    assert last.fraction == pytest.approx(0.02 + 0.97 * (bridged + 60) / (bridged + 100))
    assert last.eta_s == pytest.approx(40 / 2)
