"""Stage 1, TGMB: L_TGMB = L_rec + a_d L_D + a_im L_IM trains the translator T; the source model is frozen (arXiv 2401.05014).
By default L_rec_f and L_BN come to it.

As a method of its own it is this stage alone: the source model applied to T(x). Where the pairs are too far from the task, the
source model is calibrated in place of a T that is trained (calibration.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from app.spec import AdaptationSpec
from worker.adaptation import batch_norm, losses, parallel
from worker.adaptation.device import autocast, to_device
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import evidence, predict
from worker.adaptation.events import Logged, Phase, Warned
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods import calibration, polarity, relevance, stopping
from worker.adaptation.methods.calibration import Bridge
from worker.adaptation.parallel import gathered
from worker.adaptation.randomness import batch, generator, seed_torch
from worker.adaptation.source_model import Classifier
from worker.adaptation.stage import Stage
from worker.adaptation.transforms import apply, pair_crops, random_crops
from worker.adaptation.translator import Translator, build, replicate

COLLAPSE_IMAGES = 512
COLLAPSED_SHARE = 0.95


def work(spec: AdaptationSpec, target: int, pairs: int) -> dict[Phase, float]:
    """In forward passes of one image: T and the frozen source model, forward and backward."""
    w, s = spec.settings.weights, spec.settings.bridging
    images = (1 if w.d > 0 or w.rec_f > 0 else 0) + (1 if max(w.d, w.im, w.bn_s) > 0 else 0) + (w.rec_f > 0) / 3
    return {"bridging": s.steps * s.batch_size * (3 + 3 * images)}


def adapt(job: Job) -> Adapted:
    found = bridge(job)
    return Adapted(found.classifier, found.T, translated=True, teacher=found.classifier)


def bridge(job: Job) -> Bridge:
    """The source model, or a calibrated one, behind T. Raises Problem training_diverged."""
    T, done = train(job), job.finished["bridging"]
    classifier = calibration.restored(job, done["batch_norms"]) if "batch_norms" in done else job.source
    return Bridge(classifier, T, done["score"])


def split(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pairs to train on and of the held-out ones: one contiguous block, since neighbours may show the same
    room, at a place drawn from the seed."""
    n = len(job.pairs)
    held = min(max(1, round(n * job.spec.settings.bridging.held_out)), n - 2)
    start = int(generator(job.spec.seed, "held-out pairs").integers(0, n - held, endpoint=True))
    block = np.arange(start, start + held)
    return np.delete(np.arange(n), block), block


def train(job: Job) -> Translator:
    """T, in eval mode: the best one by the held-out pairs; as it was before training, where a calibrated source model stands in for
    it. Raises Problem training_diverged."""
    spec, s, w, device = job.spec, job.spec.settings.bridging, job.spec.settings.weights, job.device
    seed_torch(spec.seed, "bridging/weights", 0)
    T = build(s.translator, job.target.array.shape[1]).to(device)
    D = losses.discriminator(job.source.width).to(device)
    if (done := job.finished.get("bridging")) is not None:
        T.load_state_dict(done["T"])
        return T.eval().requires_grad_(False)
    averaged = copy.deepcopy(T).requires_grad_(False)
    adam = torch.optim.Adam([*T.parameters(), *D.parameters()], lr=s.lr)
    training, held = split(job)
    memory = stopping.nothing_yet()
    stage = Stage(job, "bridging", s.steps, {"T": T, "averaged": averaged, "D": D, "adam": adam}, memory)
    running = batch_norm.running(job.source)
    target_batches = relevance.targets(job)
    if stage.step == 0:
        polarity.choose(job, T, training)
        relevant = relevance.of_pairs(job, T, training, target_batches, running) if s.by_relevance else 1.0
        memory["relevance"] = parallel.agreed(relevant)
        if calibration.wanted(job, T, memory["relevance"]):
            return calibrate(stage, T, held, target_batches, running)
    w = w.model_copy(update={name: memory["relevance"] * getattr(w, name) for name in ("rec", "rec_f", "d", "im")})
    score = stopping.Score(job, held, target_batches, running, memory["relevance"])

    def make(step: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_ti_s = x_ti_t = x_tr_t = None
        if max(w.rec, w.rec_f, w.d) > 0:
            x_ti_s, x_ti_t = random_pairs_batch(job, "bridging/pairs", training, step, s.batch_size)
        if max(w.d, w.im, w.bn_s) > 0:
            x_tr_t = random_target_batch(job, "bridging/target", step, s.batch_size)
        return x_ti_s, x_ti_t, x_tr_t

    for step, (x_ti_s, x_ti_t, x_tr_t) in stage.batches(make):
        # Before the step: a job that goes on from the last checkpoint of such a stage must not take one more.
        if s.patience and memory["worse"] >= s.patience:
            job.journal(Logged(message=f"bridging stops at step {stage.step}: {s.patience} validations without a better one"))
            break
        T.train()
        stage.decay(adam, s.lr)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        with autocast(device, job.precision):
            ti, tr = translate(T, x_ti_t, x_tr_t, device)
            if w.rec > 0:
                # A mean over shares that are alike: what the processes tell each other is theirs, not the images.
                terms["L_rec"] = gathered(losses.L_rec(ti, to_device(x_ti_s, device))[None]).mean()
                total = total + w.rec * terms["L_rec"]
            parts = ([tr] if tr is not None else []) + ([ti] if w.d > 0 or w.rec_f > 0 else [])
            if max(w.d, w.im, w.bn_s, w.rec_f) > 0:
                n = len(tr) if tr is not None else 0
                with batch_norm.observed(job.source if w.bn_s > 0 else None, n, of_all=True) as seen:
                    features, logits = job.source(torch.cat(parts))
                f_tr, f_ti, logits = gathered(features[:n]), gathered(features[n:]), gathered(logits[:n])
            if w.rec_f > 0:
                with torch.no_grad():
                    f_s, _ = job.source(to_device(x_ti_s, device))
                terms["L_rec_f"] = losses.L_rec_f(gathered(f_s), f_ti)
                total = total + w.rec_f * terms["L_rec_f"]
            if w.bn_s > 0:
                terms["L_BN"] = losses.L_BN(seen, running)
                total = total + w.bn_s * terms["L_BN"]
            if w.d > 0:
                d = D(losses.reverse_gradient(torch.cat([f_tr, f_ti]), losses.dann_ramp(step / s.steps)))
                terms["L_D"] = losses.L_D(d[len(f_tr) :], d[: len(f_tr)])
                total = total + w.d * terms["L_D"]
            if w.im > 0:
                terms["L_IM"] = losses.L_IM(logits)
                total = total + w.im * terms["L_IM"]
        adam.zero_grad()
        if terms:
            total.backward()
            parallel.average_gradients([*T.parameters(), *D.parameters()])
            adam.step()
        average(averaged, T, min(s.ema, step / (step + 10)))
        if (step + 1) % s.validate_every == 0 or step + 1 == s.steps:
            stopping.keep_if_best(stage, averaged, parallel.agreed(score(averaged)))
        stage.advance(terms, images=sum(len(x) for x in (x_ti_t, x_tr_t) if x is not None))
    T.load_state_dict(memory["best"])
    T.eval().requires_grad_(False)
    warn_if_collapsed(job, job.source, T)
    told = {"best_step": memory["at"], "score": memory["score"], "relevance": memory["relevance"]}
    stage.finish({"T": T.state_dict(), **told, **polarity.told(T)})
    return T


def calibrate(
    stage: Stage, T: Translator, held: np.ndarray, target_batches: Sequence[Tensor], running: losses.Statistics
) -> Translator:
    """Ends the stage before its first step: T stays, and the source model is calibrated; but for SOCKET, whose batch norms go by each
    batch."""
    job, relevant = stage.job, stage.memory["relevance"]
    T.eval().requires_grad_(False)
    told: dict[str, Any] = {"best_step": 0, "relevance": relevant, **polarity.told(T)}
    classifier, said = job.source, "T is not trained"
    if job.spec.method != "socket_tgmb":
        classifier = calibration.calibrated(job.source, T, job.target, job.spec, job.device)
        told |= {"calibrated": True, "batch_norms": calibration.kept(classifier)}
        said = "the batch norms of the source model are calibrated by target images, and T is not trained"
    job.journal(Logged(message=f"bridging: {said} (relevance of the pairs {relevant:.2f})"))
    score = stopping.Score(job, held, target_batches, running, relevant)(T, classifier)
    told["score"] = parallel.agreed(score)
    stage.record("score", told["score"], 0)
    warn_if_collapsed(job, classifier, T)
    stage.finish({"T": T.state_dict(), **told})
    return T


@torch.no_grad()
def average(averaged: Translator, T: Translator, decay: float) -> None:
    """averaged <- decay averaged + (1 - decay) T; buffers as T has them."""
    get_ema_multi_avg_fn(decay)([*averaged.parameters()], [*T.parameters()], None)
    for mean, new in zip(averaged.buffers(), T.buffers(), strict=True):
        mean.copy_(new)


def random_target_batch(job: Job, stage: str, step: int, batch_size: int) -> Tensor:
    """x_tr_t [n, C, size, size] of a step, on the job's device: random crops and flips. Of several processes each gets its share."""
    size, seed = job.spec.source_model.input.size, job.spec.seed
    index = batch(seed, stage, step, len(job.target), batch_size)
    crops = random_crops(generator(seed, f"{stage}/crops", step), len(index), *job.target.array.shape[-2:], size)
    share = parallel.share(len(index))
    return apply(job.target.batch(index[share], job.device), crops[share], size)


def random_pairs_batch(job: Job, stage: str, training: np.ndarray, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """x_ti_s [n, 3, size, size] and x_ti_t [n, C, size, size] of a step, on the job's device: the same random crop and flip for both
    images of a pair. training: the pairs to draw from. Of several processes each gets its share."""
    size, seed = job.spec.source_model.input.size, job.spec.seed
    index = training[batch(seed, stage, step, len(training), batch_size)]
    height, width = job.pairs.source.array.shape[-2:]
    crops = random_crops(generator(seed, f"{stage}/crops", step), len(index), height, width, size, job.pairs.scale)
    share = parallel.share(len(index))
    return pair_crops(job.pairs.batch(index[share], job.device), crops[share], size)


def translate(
    T: Translator, x_ti_t: Tensor | None, x_tr_t: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """T on both batches; in one pass where the images of a batch do not see each other."""
    ti, tr = (None if x is None else to_device(x, device) for x in (x_ti_t, x_tr_t))
    if ti is not None and tr is not None and T.alone:
        both = T(torch.cat([ti, tr]))
        return both[: len(ti)], both[len(ti) :]
    return (None if ti is None else T(ti)), (None if tr is None else T(tr))


def warn_if_collapsed(job: Job, classifier: Classifier | Ensemble, T: Translator) -> None:
    """Information maximisation on a poor start ends on confident wrong classes: look at what the classifier makes of
    translated TR images."""
    rng = generator(job.spec.seed, "collapse")
    index = np.sort(rng.choice(len(job.target), min(len(job.target), COLLAPSE_IMAGES), replace=False))
    size = job.spec.source_model.input.size
    before = evidence(predict(lambda x: job.source(replicate(x)), job.target, size, job.device, index)[1])
    after = evidence(predict(lambda x: classifier(T(x)), job.target, size, job.device, index)[1])
    if message := collapsed(after, before, len(job.spec.source_model.classes)):
        job.journal(Warned(code="collapsed", message=f"bridging: {message}", data={"before": before, "after": after}))


def least_effective_classes(classes: int) -> float:
    """Fewer than these count as collapsed: 1.5, and 1.25 of 2 classes, which real data may well be split as."""
    return min(1.5, 1 + 0.25 * (classes - 1))


def collapsed(after: dict[str, float], before: dict[str, float], classes: int) -> str | None:
    """Why predictions with this evidence count as collapsed, or None."""
    if after["largest_class_share"] > COLLAPSED_SHARE >= before["largest_class_share"]:
        return (
            f"one class for {after['largest_class_share']:.0%} of the target images; {before['largest_class_share']:.0%} before"
        )
    if after["effective_classes"] < least_effective_classes(classes):
        return f"the predictions use {after['effective_classes']:.2f} of {classes} classes effectively"
    return None
