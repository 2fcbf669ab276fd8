from __future__ import annotations

import os
from pathlib import Path

import torch

from app.spec import AdaptationSpec
from worker.adaptation import losses
from worker.adaptation.job import Job
from worker.adaptation.journal import Journal
from worker.adaptation.stage import Stage

from .conftest import spec


def test_a_loss_that_was_made_on_the_cpu_is_summed_on_the_jobs_device(tmp_path):
    """As L_BN of a model without batch norms is; torch's meta device refuses to mix as CUDA does."""
    elsewhere = torch.device("meta")
    written = AdaptationSpec.model_validate(spec(tmp_path))
    with Path(os.devnull).open("wb") as nobody:
        journal = Journal(nobody.fileno(), tmp_path)
        job = Job(written, tmp_path, journal, elsewhere, "fp32", None, None, None, {}, 1e9, {})
        stage = Stage(job, "bridging", 5, {}, {})
        for _ in range(2):
            stage.advance({"L_rec": torch.zeros((), device=elsewhere), "L_BN": losses.L_BN([], []), "L_d": losses.L_d([], [])}, 8)
        journal.close()
    assert {name: total.device.type for name, total in stage.sums.items()} == dict.fromkeys(("L_rec", "L_BN", "L_d"), "meta")
