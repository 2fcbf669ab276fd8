"""How much the pairs say of the target images (ours).

Pairs at hand are of another domain more often than not: road scenes, where the task is flying objects. A T that is made to translate
those goes on getting better at them, and worse at what it is for. The batch norms of the source model tell: where the RGB images of
the pairs are as far from what it was trained on as the raw target images are, nothing is to be learned from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from worker.adaptation import batch_norm, losses
from worker.adaptation.device import autocast, to_device
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import centre_batch, centre_pairs, chunks, spread
from worker.adaptation.job import Job
from worker.adaptation.randomness import generator
from worker.adaptation.source_model import Classifier

IMAGES = 256
"""Target images, and pairs, at most."""
LEAST_RELEVANCE = 0.25
"""Below it the pairs are too far from the task to train T, to tie features by L_feat, and to judge features by."""
Translate = Callable[[Tensor], Tensor]


def targets(job: Job) -> list[Tensor]:
    """Batches of target images, on the job's device, the same whenever asked for."""
    index = generator(job.spec.seed, "bridging/score").choice(len(job.target), min(len(job.target), IMAGES), replace=False)
    size = job.spec.source_model.input.size
    return [centre_batch(job.target, part, size, job.device) for part in chunks(np.sort(index)) if len(part) > 1]


@torch.no_grad()
def distance(
    job: Job,
    batches: Sequence[Tensor],
    translate: Translate,
    running: losses.Statistics,
    classifier: Classifier | Ensemble | None = None,
) -> Tensor:
    """The mean over batches of L_BN of translate(x) in the classifier, that is the source model or one calibrated to the sensor: how far
    images are from those that its running statistics are of. 0 for one without batch norms."""
    classifier = classifier or job.source
    total = torch.zeros((), device=job.device)
    for x in batches:
        with autocast(job.device, job.precision), batch_norm.observed(classifier) as seen:
            classifier(translate(to_device(x, job.device)))
        total += losses.L_BN(seen, running) / len(batches)
    return total


def of_pairs(
    job: Job, start: Translate, index: np.ndarray, target_batches: Sequence[Tensor], running: losses.Statistics
) -> float:
    """1 - distance(x_ti_s) / distance(start(x_tr_t)), at least 0: 1 where the RGB images of the pairs are as those that the source
    model was trained on. start: T as it is before training. index: of pairs. target_batches: of `targets`. 1 where there are no batch norms to tell."""
    size = job.spec.source_model.input.size
    rgb = [centre_pairs(job.pairs, part, size, job.device)[0] for part in chunks(spread(index, IMAGES)) if len(part) > 1]
    pairs = distance(job, rgb, lambda x: x, running).item()
    raw = distance(job, target_batches, start, running).item()
    return max(0.0, 1 - pairs / raw) if raw > 0 else 1.0
