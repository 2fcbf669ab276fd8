"""When stage 1 stops, and which T it keeps: by a score without labels, of images that T is not trained on and of target images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.adaptation import batch_norm, losses
from worker.adaptation.device import autocast, to_device
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import centre_pairs, chunks
from worker.adaptation.job import Job
from worker.adaptation.methods.relevance import Translate, distance
from worker.adaptation.source_model import Classifier
from worker.adaptation.stage import Stage
from worker.adaptation.translator import Translator, replicate

IMAGES = 256
"""Held-out pairs at most."""
TOLERANCE = 0.03
"""A later T replaces the best one unless its score is worse by more than this share: the score is nearly flat, and L_D and L_IM,
which it does not show, go on adapting T."""


class Score:
    """The score of a translator: the mean of L_rec and of the squared distance of source features on the held-out pairs, which
    count as far as `relevance` says, and of L_BN on target images, each over that of the replicated image. 1 is "no better than
    replicating", 0 perfect.

    The pairs alone would keep an untrained T where they are of another domain than the target images, as road scenes are for
    flying objects; the statistics in the source model's batch norms are what is known of the domain itself (ours).
    """

    def __init__(
        self, job: Job, held: np.ndarray, target_batches: Sequence[Tensor], running: losses.Statistics, relevance: float
    ) -> None:
        self.job, self.running = job, running
        self.weights = torch.tensor([relevance, relevance, 1.0], device=job.device)
        size = job.spec.source_model.input.size
        self.targets = target_batches
        self.pairs = []
        with torch.no_grad():
            for part in chunks(held[:IMAGES]):
                source, target = (to_device(x, job.device) for x in centre_pairs(job.pairs, part, size, job.device))
                self.pairs.append((source, target, self._features(job.source, source)))
        self.replicated = self._distances(replicate, job.source)

    def __call__(self, T: Translator, classifier: Classifier | Ensemble | None = None) -> float:
        """classifier: what T is a part of, where that is not the source model."""
        T.eval()
        weights = self.weights * (self.replicated > 0)
        ratios = self._distances(T, classifier or self.job.source) / self.replicated.clamp_min(1e-12)
        return ((weights * ratios).sum() / weights.sum().clamp_min(1e-12)).item()

    @torch.no_grad()
    def _distances(self, translate: Translate, classifier: Classifier | Ensemble) -> Tensor:
        """L_rec, feature distance and L_BN: float32 [3]."""
        sums = torch.zeros(3, device=self.job.device)
        for source, target, features in self.pairs:
            with autocast(self.job.device, self.job.precision):
                translated = translate(target)
            rec = losses.L_rec(translated, source)
            share = len(source) / sum(len(source) for source, _, _ in self.pairs)
            sums[:2] += share * torch.stack([rec, losses.L_feat(features, self._features(classifier, translated))])
        running = self.running if classifier is self.job.source else batch_norm.running(classifier)
        sums[2] = distance(self.job, self.targets, translate, running, classifier)
        return sums

    def _features(self, classifier: Classifier | Ensemble, x: Tensor) -> Tensor:
        with autocast(self.job.device, self.job.precision):
            return classifier(x)[0].float()


def nothing_yet() -> dict[str, Any]:
    """The memory of a stage that uses `keep_if_best`."""
    return {"best": None, "score": 0.0, "lowest": float("inf"), "at": 0, "worse": 0}


def keep_if_best(stage: Stage, T: Translator, score: float) -> None:
    """Records the score of T after the stage's present step, and keeps a copy of T in the stage's memory unless a former one
    was better."""
    step, memory = stage.step + 1, stage.memory
    stage.record("score", score, step)
    if score <= memory["lowest"] * (1 + TOLERANCE):
        memory.update(best=copy.deepcopy(T.state_dict()), score=score, at=step, worse=0)
        memory["lowest"] = min(memory["lowest"], score)
    else:
        memory["worse"] += 1
