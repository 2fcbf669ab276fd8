"""Stage 2, TGKT: L_TGKT = L_KL + b_f L_feat + b_self L_self trains the target extractor f_t; T, the source model and every
classifier are frozen (arXiv 2401.05014). As the method `tgmb_tgkt` it follows stage 1: the paper's whole method.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from app.spec import AdaptationSpec
from worker.adaptation import losses, pseudo_labels
from worker.adaptation.device import autocast, to_device
from worker.adaptation.evaluation import evidence, predict
from worker.adaptation.events import Phase, Warned
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods import tgmb
from worker.adaptation.randomness import batch, batch_size, generator, steps_an_epoch
from worker.adaptation.source_model import Classifier, batch_norms
from worker.adaptation.stage import Stage
from worker.adaptation.transforms import pair_crops
from worker.adaptation.translator import Translator, replicate


def work(spec: AdaptationSpec, target: int, pairs: int) -> dict[Phase, float]:
    """In forward passes of one image: stage 1; then student (3), teacher behind T (2), both extractors on a pair (4), and
    the pass for the pseudo-labels."""
    w, s = spec.settings.weights, spec.settings.transfer
    image = (5 if w.kl > 0 else 3 if w.self > 0 else 0) + (4 if w.feat > 0 else 0)
    seen = s.epochs * steps_an_epoch(target, s.batch_size) * batch_size(target, s.batch_size)
    stage_1 = tgmb.work(spec, target, pairs) if w.kl > 0 else {}
    return stage_1 | {"transferring": seen * image + (s.epochs * target if w.self > 0 else 0)}


def adapt(job: Job) -> Adapted:
    T = tgmb.train(job) if job.spec.settings.weights.kl > 0 else None  # L_KL alone needs T
    return Adapted(train(job, T), T)


def train(job: Job, T: Translator | None) -> Classifier:
    """The target model h_t(f_t(x)), in eval mode. Raises Problem training_diverged."""
    spec, s, w, device = job.spec, job.spec.settings.transfer, job.spec.settings.weights, job.device
    student = copy.deepcopy(job.source)
    if (done := job.finished.get("transferring")) is not None:
        student.load_state_dict(done["student"])
        return student.eval().requires_grad_(False)
    student.f.requires_grad_(True)
    sgd = torch.optim.SGD(student.f.parameters(), s.lr, s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0)
    an_epoch = steps_an_epoch(len(job.target), s.batch_size)
    training, _ = tgmb.split(job)
    memory: dict[str, Any] = {"labels": None, "epoch": -1}
    stage = Stage(job, "transferring", s.epochs * an_epoch, {"student": student, "sgd": sgd}, memory)

    def make(step: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_ti_s = x_ti_t = x_tr_t = None
        if w.kl > 0 or w.self > 0:
            x_tr_t = tgmb.random_target_batch(job, "transferring/target", step, s.batch_size)
        if w.feat > 0:
            index = training[batch(spec.seed, "transferring/pairs", step, len(training), s.batch_size)]
            rng = generator(spec.seed, "transferring/pairs/crops", step)
            x_ti_s, x_ti_t = pair_crops(rng, job.pairs.batch(index), spec.source_model.input.size, job.pairs.scale)
        return x_tr_t, x_ti_s, x_ti_t

    for step, (x_tr_t, x_ti_s, x_ti_t) in stage.batches(make):
        if step // an_epoch != memory["epoch"]:
            refresh(stage, student, step // an_epoch)
        student.train()
        stage.decay(sgd, s.lr)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        with autocast(device, job.precision):
            if w.feat > 0:
                with torch.no_grad():
                    f_s, _ = job.source(to_device(x_ti_s, device))
                with running_statistics_kept(student):
                    f_t, _ = student(replicate(to_device(x_ti_t, device)))
                terms["L_feat"] = losses.L_feat(f_s, f_t)
                total = total + w.feat * terms["L_feat"]
            if w.kl > 0 or w.self > 0:
                x = to_device(x_tr_t, device)
                _, logits = student(replicate(x))
            if w.kl > 0:
                with torch.no_grad():
                    _, teacher = job.source(T(x))
                terms["L_KL"] = losses.L_KL(teacher, logits)
                total = total + w.kl * terms["L_KL"]
            if w.self > 0:
                index = torch.from_numpy(batch(spec.seed, "transferring/target", step, len(job.target), s.batch_size))
                terms["L_self"] = losses.L_self(logits, memory["labels"][index].to(device))
                total = total + w.self * terms["L_self"]
        sgd.zero_grad()
        if terms:
            total.backward()
            sgd.step()
        stage.advance(terms, images=sum(len(x) for x in (x_tr_t, x_ti_t) if x is not None))
    student.eval().requires_grad_(False)
    stage.finish({"student": student.state_dict()})
    return student


def refresh(stage: Stage, student: Classifier, epoch: int) -> None:
    """The start of an epoch: pseudo-labels from the target model's own predictions at centre crops (SHOT, both rounds)."""
    job, memory = stage.job, stage.memory
    memory["epoch"] = epoch
    if job.spec.settings.weights.self == 0:
        return
    student.eval()
    with autocast(job.device, job.precision):
        features, logits = predict(lambda x: student(replicate(x)), job.target, job.spec.source_model.input.size, job.device)
    labels = pseudo_labels.assign(features, logits.softmax(1))
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


@contextmanager
def running_statistics_kept(student: Classifier) -> Iterator[None]:
    """Batch norm normalises a batch by its own statistics, as in training, but does not add them to the running ones: those
    must be of the target images that the model will meet, not of TI images."""
    layers = batch_norms(student)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
