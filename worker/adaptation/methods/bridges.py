"""What bridges the modalities when stage 1 is done, and teaches in stage 2: the source model behind T; or the source model whose batch
norms were calibrated to the sensor, behind T as it was before training (ours).

A batch norm subtracts and divides by what the source model's images had in each channel. Images of the sensor have something else there,
and where T cannot make up for that by pixels, the layers can be told what to subtract and divide by:

    target    what target images have there, so that they come out as the private images did (AdaBN; Li et al., Pattern Recognition 80,
              2018). Right where the running statistics are of images of the task
    pairs     what the sensor's images of the pairs have there, and then so that they come out as their RGB images do. Right where the
              running statistics are of other images, as under a head on a frozen backbone, and the pairs are of the task's domain

Nothing is trained by it. Which one bridges is told by target images: the one by whose predictions they fall into classes most clearly,
that is with the greatest mutual information of image and class, H(mean p) - mean H(p), in nats. Labels have no part in it. T itself
stands for election only where the pairs, which hold it, are relevant: where nothing does, T learns to make confident wrong classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.adaptation import batch_norm, losses, parallel
from worker.adaptation.device import to_device
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import centre_batch, centre_pairs, predict_logits, spread
from worker.adaptation.events import Logged
from worker.adaptation.job import Job
from worker.adaptation.methods import relevance
from worker.adaptation.methods.stopping import Score
from worker.adaptation.randomness import generator
from worker.adaptation.source_model import Classifier
from worker.adaptation.translator import ResidualTranslator, Translator

IMAGES = 1024
"""Target images, and pairs, at most, evenly spread."""
BATCH = 128
"""Images at a time: more than elsewhere, since it is their statistics that a layer is told."""
PASSES = 2
LEAST_RELEVANCE = 0.5
"""Of the pairs (relevance.py), for the source model behind T to bridge."""


@dataclass(frozen=True)
class Bridge:
    """classifier(T(x)) is what stage 1 has to say of images x of the sensor. score: see stopping.Score."""

    classifier: Classifier | Ensemble
    T: Translator
    score: float


def choose(job: Job, T: Translator, training: np.ndarray, held: np.ndarray) -> Bridge:
    """T: trained. training, held: of the pairs, those that T was trained on and the others."""
    done = job.finished["bridging"]
    trained = Bridge(job.source, T, done["score"])
    calibrates = job.spec.settings.bridging.calibration == "auto" and batch_norm.tracking(job.source)
    if not calibrates or not isinstance(T, ResidualTranslator):
        return trained
    T_0 = T.untrained()
    if "bridge" not in done:
        done |= _found(job, trained, T_0, training, held)
    if done["bridge"] == "translator":
        return trained
    classifier = copy.deepcopy(job.source)
    for layer, tensors in zip(batch_norm.tracking(classifier), done["batch_norms"], strict=True):
        layer.load_state_dict(tensors)
    return Bridge(classifier, T_0, done["bridge_score"])


@torch.no_grad()
def _found(job: Job, trained: Bridge, T_0: Translator, training: np.ndarray, held: np.ndarray) -> dict:
    """What is kept of the choice, in checkpoints too."""
    size, index = job.spec.source_model.input.size, spread(np.arange(len(job.target)), IMAGES)
    bridges = {"translator": trained}
    for name, classifier in _calibrated(job, T_0, index, spread(training, IMAGES)).items():
        bridges[name] = Bridge(classifier, T_0, 0.0)
    information = {}
    for name, bridge in bridges.items():
        logits = predict_logits(lambda x, of=bridge: of.classifier(of.T(x)), job.target, size, job.device, index)
        information[name] = parallel.agreed(-losses.L_IM(logits).item(), job.device)
    relevant = job.finished["bridging"]["relevance"] >= LEAST_RELEVANCE
    best = max(
        (name for name in information if relevant or name != "translator"), key=information.__getitem__, default="translator"
    )
    said = ", ".join(f"{name} {value:.2f}" for name, value in information.items())
    but = "" if relevant else ", and the pairs are too far from the task to hold T"
    job.journal(Logged(message=f"bridging: {best} bridges; the mutual information of image and class, in nats: {said}{but}"))
    if best == "translator":
        return {"bridge": best, "information": information}
    score = Score(job, held, relevance.targets(job), batch_norm.running(job.source), job.finished["bridging"]["relevance"])
    classifier = bridges[best].classifier
    return {
        "bridge": best,
        "information": information,
        "bridge_score": parallel.agreed(score(T_0, classifier), job.device),
        "batch_norms": [layer.state_dict() for layer in batch_norm.tracking(classifier)],
    }


def _calibrated(job: Job, T_0: Translator, index: np.ndarray, training: np.ndarray) -> dict[str, Classifier | Ensemble]:
    """By name, in eval mode. index: of target images; training: of pairs. One that has too few images is left out."""
    size = job.spec.source_model.input.size

    def pairs(some: np.ndarray) -> tuple[Tensor, Tensor]:
        source, target = centre_pairs(job.pairs, training[some], size)
        return to_device(source, job.device), T_0(to_device(target, job.device))

    made: dict[str, Classifier | Ensemble] = {}
    if len(index) > 1:
        made["target"] = _recalibrated(
            job, lambda some: T_0(to_device(centre_batch(job.target, index[some], size), job.device)), len(index)
        )
    if len(training) > 1 and all(layer.affine for layer in batch_norm.tracking(job.source)):
        as_rgb = _measured(job, lambda some: pairs(some)[0], len(training))
        made["pairs"] = _recalibrated(job, lambda some: pairs(some)[1], len(training), as_rgb)
    return made


def _recalibrated(
    job: Job, images: Callable[[np.ndarray], Tensor], n: int, as_rgb: losses.Statistics | None = None
) -> Classifier | Ensemble:
    """The source model by whose batch norms images(0, ..., n - 1) come out with its own running statistics or, where those are given,
    with the statistics `as_rgb`."""
    made = copy.deepcopy(job.source)
    layers = batch_norm.tracking(made)
    momenta = [layer.momentum for layer in layers]
    for layer, (mu, var) in zip(layers, as_rgb or (), strict=False):
        # What enters with statistics mu, var leaves the source's layer with mean bias + weight (mu - mu_s) / sd_s, and so on.
        sd_s = (layer.running_var + layer.eps).sqrt()
        layer.bias += layer.weight * (mu - layer.running_mean) / sd_s
        layer.weight *= (var + layer.eps).sqrt() / sd_s
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    for part in _batches(job, n):
        made(images(part))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.running_mean.copy_(parallel.first_of_all(layer.running_mean))
        layer.running_var.copy_(parallel.first_of_all(layer.running_var))
        layer.eval()
    return made


def _measured(job: Job, images: Callable[[np.ndarray], Tensor], n: int) -> losses.Statistics:
    """What enters the batch norms of the source model, in the mean over batches."""
    seen = []
    for part in _batches(job, n):
        with batch_norm.observed(job.source) as found:
            job.source(images(part))
        seen.append(found)
    return [
        tuple(parallel.first_of_all(torch.stack(one).mean(0)) for one in zip(*layer, strict=True))
        for layer in zip(*seen, strict=True)
    ]


def _batches(job: Job, n: int) -> list[np.ndarray]:
    """PASSES times all of n images, in another order each time; at least two at a time, of n > 1."""
    rng = generator(job.spec.seed, "bridging/calibration")
    return [part for _ in range(PASSES) for part in np.array_split(rng.permutation(n), max(1, n // BATCH))]
