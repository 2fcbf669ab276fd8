"""socket: SHOT + lambda_TI L_feat + lambda_d L_BN (Ahmed et al., arXiv 2209.04027). Unlike the released code, both images of
a pair get the same crop, and TI images do not count in the running statistics of batch norm: both can only help it.
"""

from __future__ import annotations

from app.method_settings import LossWeights
from app.spec import AdaptationSpec
from worker.adaptation import losses
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.events import Phase
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods import transfer
from worker.adaptation.source_model import Classifier
from worker.adaptation.translator import replicate


def terms(spec: AdaptationSpec) -> LossWeights:
    return spec.settings.weights.only("feat", "self", "im_t", "bn_t")


def work(spec: AdaptationSpec, target: int, pairs: int) -> dict[Phase, float]:
    return transfer.work(spec, terms(spec), target)


def adapt(job: Job) -> Adapted:
    return Adapted(train(job))


def train(job: Job, feed: transfer.Feed = replicate) -> Classifier | Ensemble:
    return transfer.train(job, terms(job.spec), feed=feed, l_feat=losses.L_feat_norm, l_bn=losses.L_d, rounds=1)
