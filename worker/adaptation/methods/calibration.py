"""What bridges the modalities where the pairs can't: the source model, its batch norms calibrated to the sensor by target images (ours).

Where the pairs are of another domain than the task (relevance.py), L_BN alone is left to train T, and T matches the statistics of
the private images by whatever pixels do so, which differ from seed to seed. The same statistics can be matched without training
anything. A batch norm subtracts and divides by what the source model's images had in each channel; calibrated, by what target
images have there, so that they come out of every layer as the private images did (AdaBN: Li et al., Pattern Recognition 80, 2018).
T stays as it was before training: the image as it is, or its negative (polarity.py).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.spec import AdaptationSpec
from worker.adaptation import batch_norm, parallel
from worker.adaptation.device import to_device
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import centre_batch, spread
from worker.adaptation.image_sets import Images
from worker.adaptation.job import Job
from worker.adaptation.methods.relevance import LEAST_RELEVANCE
from worker.adaptation.randomness import generator
from worker.adaptation.source_model import Classifier
from worker.adaptation.translator import ResidualTranslator, Translator

IMAGES = 2048
"""Target images at most, evenly spread."""
BATCH = 128
"""Images at a time, at most: more than elsewhere, since it is their statistics that a layer takes over."""
PASSES = 2


@dataclass(frozen=True)
class Bridge:
    """What stage 1 has to say of images x of the sensor: classifier(T(x)). score: 1 is no better than replicating, 0 perfect
    (stopping.py)."""

    classifier: Classifier | Ensemble
    T: Translator
    score: float


def wanted(job: Job, T: Translator, relevance: float) -> bool:
    """Whether to calibrate the source model in place of training T, which must be an image already."""
    how = job.spec.settings.bridging.calibration
    possible = isinstance(T, ResidualTranslator) and bool(batch_norm.tracking(job.source)) and len(job.target) > 1
    return possible and (how == "always" or (how == "auto" and relevance < LEAST_RELEVANCE))


@torch.no_grad()
def calibrated(
    source: Classifier | Ensemble, T: Translator, target: Images, spec: AdaptationSpec, device: torch.device
) -> Classifier | Ensemble:
    """A copy of the source model, in eval mode, whose running statistics are of T(x_tr_t), each layer behind layers that are
    calibrated too."""
    made = copy.deepcopy(source)
    layers = batch_norm.tracking(made)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    index, size = spread(np.arange(len(target)), IMAGES), spec.source_model.input.size
    rng = generator(spec.seed, "bridging/calibration")
    for _ in range(PASSES):
        for part in np.array_split(rng.permutation(index), -(-len(index) // BATCH)):
            made(T(to_device(centre_batch(target, part, size, device), device)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        parallel.first_of_all(layer.running_mean)
        parallel.first_of_all(layer.running_var)
    return made.eval()


def kept(classifier: Classifier | Ensemble) -> list[dict[str, Tensor]]:
    """For checkpoints."""
    return [layer.state_dict() for layer in batch_norm.tracking(classifier)]


def restored(job: Job, layers: list[dict[str, Tensor]]) -> Classifier | Ensemble:
    """What `kept` was of."""
    made = copy.deepcopy(job.source)
    for layer, tensors in zip(batch_norm.tracking(made), layers, strict=True):
        layer.load_state_dict(tensors)
    return made
