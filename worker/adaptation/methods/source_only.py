"""source_only: the source model on the target image replicated to 3 channels. No training."""

from __future__ import annotations

from app.spec import AdaptationSpec
from worker.adaptation.events import Phase
from worker.adaptation.job import Adapted, Job


def work(spec: AdaptationSpec, target: int, pairs: int) -> dict[Phase, float]:
    return {}


def adapt(job: Job) -> Adapted:
    return Adapted(job.source)
