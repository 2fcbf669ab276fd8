"""shot: L_IM + b_self L_self on the target images, from the source weights; no pairs (Liang et al., arXiv 2002.08546)."""

from __future__ import annotations

from app.method_settings import LossWeights
from app.spec import AdaptationSpec
from worker.adaptation.events import Phase
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods import transfer


def terms(spec: AdaptationSpec) -> LossWeights:
    return spec.settings.weights.only("self", "im_t")


def work(spec: AdaptationSpec, target: int, pairs: int) -> dict[Phase, float]:
    return transfer.work(spec, terms(spec), target)


def adapt(job: Job) -> Adapted:
    return Adapted(transfer.train(job, terms(job.spec)))
