"""Stage 2: trains a student f_t on the unlabelled target images and the pairs. The loop of every method that has a student.

    L = kl L_KL + feat L_feat + self L_self + im_t L_IM + bn_t L_BN

A method is a choice among these terms, and what the student is fed. T, the source model and every classifier are frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from app.method_settings import LossWeights, TransferSettings
from app.spec import AdaptationSpec
from worker.adaptation import batch_norm, losses, parallel, pseudo_labels
from worker.adaptation.device import autocast, moved, to_device
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import evidence, predict
from worker.adaptation.events import Phase, Warned
from worker.adaptation.job import Job
from worker.adaptation.methods import tgmb
from worker.adaptation.methods.calibration import Bridge
from worker.adaptation.parallel import gathered
from worker.adaptation.randomness import batch, batch_size, steps_an_epoch
from worker.adaptation.source_model import Classifier
from worker.adaptation.stage import Stage
from worker.adaptation.translator import replicate

Feed = Callable[[Tensor], Tensor]
"""Images of the sensor [N, C, H, W] -> what the student is fed [N, 3, H, W]."""


def work(spec: AdaptationSpec, w: LossWeights, target: int) -> dict[Phase, float]:
    """In forward passes of one image: student (3), teacher behind T (2), both extractors on a pair (4), pseudo-labels."""
    s = spec.settings.transfer
    image = (3 if uses_target(w) else 0) + (2 if w.kl > 0 else 0) + (4 if w.feat > 0 else 0)
    seen = s.epochs * steps_an_epoch(target, s.batch_size) * batch_size(target, s.batch_size)
    return {"transferring": seen * image + (s.epochs * target if w.self > 0 else 0)}


def uses_target(w: LossWeights) -> bool:
    return max(w.kl, w.self, w.im_t, w.bn_t) > 0


def train(
    job: Job,
    w: LossWeights,
    bridge: Bridge | None = None,
    feed: Feed = replicate,
    l_feat: Callable[[Tensor, Tensor], Tensor] | None = None,
    l_bn: Callable[[losses.Statistics, losses.Statistics], Tensor] | None = None,
    rounds: int = 2,
) -> Classifier | Ensemble:
    """The target model h_t(f_t(feed(x))), in eval mode. bridge: the teacher of L_KL. l_feat, l_bn: the forms of L_feat and L_BN. Each
    where its loss has a weight. rounds: of the pseudo-labels' centroids. Raises Problem training_diverged."""
    spec, s, device = job.spec, job.spec.settings.transfer, job.device
    student = copy.deepcopy(job.source)
    if (done := job.finished.get("transferring")) is not None:
        student.load_state_dict(done["student"])
        return student.eval().requires_grad_(False)
    optimiser = optimiser_of(student, s)
    learned = [parameter.requires_grad_(True) for group in optimiser.param_groups for parameter in group["params"]]
    an_epoch = steps_an_epoch(len(job.target), s.batch_size)
    memory: dict[str, Any] = {"labels": None, "epoch": -1}
    stage = Stage(job, "transferring", s.epochs * an_epoch, {"student": student, "optimiser": optimiser}, memory)
    running = batch_norm.running(job.source)

    for step, (x_tr_t, x_ti_s, x_ti_t) in stage.batches(batches(job, w)):
        if step // an_epoch != memory["epoch"]:
            refresh(stage, w, lambda x: student(feed(x)), student, step // an_epoch, rounds)
        student.train()
        if s.batch_norm == "frozen":
            batch_norm.freeze(student)
        stage.decay(optimiser, s.lr, s.warmup)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        with autocast(device, job.precision):
            tr, ti = (None if x is None else to_device(x, device) for x in (x_tr_t, x_ti_t))
            f_t, logits, seen = forward(student, feed, tr, ti, observe=w.bn_t > 0, together=s.batch_norm == "frozen")
            f_t, logits = (None if x is None else gathered(x) for x in (f_t, logits))
            x_ti_s = to_device(x_ti_s, device) if w.feat > 0 else None
            f_s, taught = frozen(job.source, x_ti_s, tr if w.kl > 0 else None, bridge)
            if w.feat > 0:
                terms["L_feat"] = l_feat(gathered(f_s), f_t)
                total = total + w.feat * terms["L_feat"]
            if w.kl > 0:
                terms["L_KL"] = losses.L_KL(gathered(taught), logits, s.kl_by_confidence)
                total = total + w.kl * terms["L_KL"]
            if w.self > 0:
                index = torch.from_numpy(batch(spec.seed, "transferring/target", step, len(job.target), s.batch_size))
                terms["L_self"] = losses.L_self(logits, moved(memory["labels"][index[: len(logits)]], device))
                total = total + w.self * terms["L_self"]
            if w.im_t > 0:
                terms["L_IM"] = losses.L_IM(logits)
                total = total + w.im_t * terms["L_IM"]
            if w.bn_t > 0:
                terms["L_BN"] = l_bn(seen, running)
                total = total + w.bn_t * terms["L_BN"]
        optimiser.zero_grad()
        if terms:
            total.backward()
            parallel.average_gradients(learned)
            optimiser.step()
        stage.advance(terms, images=sum(len(x) for x in (x_tr_t, x_ti_t) if x is not None))
    student.eval().requires_grad_(False)
    stage.finish({"student": student.state_dict()})
    return student


def optimiser_of(student: Classifier | Ensemble, s: TransferSettings) -> Optimizer:
    """Of f_t, and of the mixing weights of several source models where they are learned. These learn ten times as fast, and so does
    under SGD a bottleneck, which SHOT and SOCKET train from scratch, as theirs does."""
    fast = [parameter for member in student.members for parameter in member.bottleneck()] if s.optimizer == "sgd" else []
    theirs = {id(parameter) for parameter in fast}
    rest = [p for member in student.members for p in member.f.parameters() if id(p) not in theirs]
    if s.mixing == "learned" and isinstance(student, Ensemble):
        fast.append(student.mixing)
    groups = [{"params": rest, "factor": 1.0}, {"params": fast, "factor": 10.0}][: 2 if fast else 1]
    if s.optimizer == "adamw":
        return AdamW(groups, s.lr, weight_decay=s.weight_decay, fused=True)
    return SGD(groups, s.lr, s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0, fused=True)


def forward(
    student: Classifier | Ensemble, feed: Feed, tr: Tensor | None, ti: Tensor | None, observe: bool, together: bool
) -> tuple[Tensor | None, Tensor | None, list[tuple[Tensor, Tensor]]]:
    """Features of the TI images, logits of the TR images, and the statistics of the TR images in the batch norms. together:
    in one pass, where the images of a batch do not see each other."""
    observed = student if observe and tr is not None else None
    if tr is None and ti is None:
        return None, None, []
    if tr is None or ti is None or together:
        n = 0 if tr is None else len(tr)
        with batch_norm.observed(observed, n, of_all=True) as seen:
            features, logits = student(feed(torch.cat([x for x in (tr, ti) if x is not None])))
        return features[n:], logits[:n], seen
    # The running statistics must be of the target images that the model will meet, not of TI images.
    with batch_norm.kept(student):
        features, _ = student(feed(ti))
    with batch_norm.observed(observed, of_all=True) as seen:
        _, logits = student(feed(tr))
    return features, logits, seen


@torch.no_grad()
def frozen(
    source: Classifier | Ensemble, x_ti_s: Tensor | None, tr: Tensor | None, bridge: Bridge | None
) -> tuple[Tensor | None, Tensor | None]:
    """What is known of a step: features of the TI images in RGB by the source model, logits of the target images by the teacher. Where
    that is the source model behind T, in one pass, which is faster than two over half as many."""
    x_tr_s = None if tr is None else bridge.T(tr)
    if x_ti_s is not None and x_tr_s is not None and bridge.classifier is source:
        features, logits = source(torch.cat([x_ti_s, x_tr_s]))
        return features[: len(x_ti_s)], logits[len(x_ti_s) :]
    return None if x_ti_s is None else source(x_ti_s)[0], None if x_tr_s is None else bridge.classifier(x_tr_s)[1]


def batches(job: Job, w: LossWeights) -> Callable[[int], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """The batch of a step: x_tr_t, x_ti_s, x_ti_t, each where a loss asks for it."""
    size = job.spec.settings.transfer.batch_size
    training = tgmb.split(job)[0] if w.feat > 0 else None

    def make(step: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_tr_t = x_ti_s = x_ti_t = None
        if uses_target(w):
            x_tr_t = tgmb.random_target_batch(job, "transferring/target", step, size)
        if training is not None:
            x_ti_s, x_ti_t = tgmb.random_pairs_batch(job, "transferring/pairs", training, step, size)
        return x_tr_t, x_ti_s, x_ti_t

    return make


def refresh(stage: Stage, w: LossWeights, model, student: Classifier | Ensemble, epoch: int, rounds: int) -> None:
    """The start of an epoch: pseudo-labels from the target model's own predictions at centre crops (SHOT)."""
    job, memory = stage.job, stage.memory
    memory["epoch"] = epoch
    if w.self == 0:
        return
    student.eval()
    with autocast(job.device, job.precision):
        some = parallel.part(len(job.target))
        features, logits = predict(model, job.target, job.spec.source_model.input.size, job.device, some)
    if parallel.size() > 1:
        features, logits = (gathered(x.to(job.device))[: len(job.target)].cpu() for x in (features, logits))
    labels = pseudo_labels.assign(features, logits.softmax(1), rounds)
    if memory["labels"] is not None:
        stage.record("churn", pseudo_labels.churn(memory["labels"], labels))
    seen = evidence(logits)
    stage.record("effective_classes", seen["effective_classes"])
    if epoch > 0 and seen["effective_classes"] < tgmb.least_effective_classes(logits.shape[1]):
        warned = any(warning.code == "collapsed" and "transferring" in warning.message for warning in job.journal.warnings)
        if not warned:
            message = f"transferring: the predictions use {seen['effective_classes']:.2f} classes effectively in epoch {epoch}"
            job.journal(Warned(code="collapsed", message=message, data=seen))
    memory["labels"] = labels
