"""tgmb_tgkt: stage 1, TGMB, then stage 2, TGKT: L_TGKT = L_KL + b_f L_feat + b_self L_self trains f_t, taught by the source
model behind T (arXiv 2401.05014). By default with two terms more (ours): information maximisation and batch-norm statistics.
"""

from __future__ import annotations

from app.spec import AdaptationSpec
from worker.adaptation import losses
from worker.adaptation.events import Phase
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods import tgmb, transfer
from worker.adaptation.methods.relevance import LEAST_RELEVANCE


def work(spec: AdaptationSpec, target: int, pairs: int) -> dict[Phase, float]:
    w = spec.settings.weights
    return (tgmb.work(spec, target, pairs) if w.kl > 0 else {}) | transfer.work(spec, w, target)


def adapt(job: Job) -> Adapted:
    w, s = job.spec.settings.weights, job.spec.settings.transfer
    bridge = tgmb.bridge(job) if w.kl > 0 else None  # L_KL alone needs it
    if bridge is not None and s.kl_by_score:
        w = w.model_copy(update={"kl": w.kl * max(0.0, 1 - bridge.score)})
    if bridge is not None and s.feat_by_relevance and job.finished["bridging"]["relevance"] < LEAST_RELEVANCE:
        w = w.model_copy(update={"feat": 0.0})
    l_feat = losses.L_rec_f if s.feat_distance == "relative" else losses.L_feat
    student = transfer.train(job, w, bridge, l_feat=l_feat, l_bn=losses.L_BN)
    return Adapted(student) if bridge is None else Adapted(student, bridge.T, teacher=bridge.classifier)
