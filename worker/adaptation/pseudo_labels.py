"""Pseudo-labels by nearest centroid (SHOT, Liang et al., arXiv 2002.08546, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 4096
"""Images at a time: 32 MiB of 2,048 features."""


def assign(features: Tensor, p: Tensor, rounds: int = 2) -> Tensor:
    """The nearest centroid of every image by cosine: int64 [N].

    features: [N, D] of the target extractor; p: [N, K] its class probabilities. A feature gets a 1 appended and is then
    L2-normalised, f_i, as SHOT's released code does. Centroids c_k = sum_i p(k|x_i) f_i / sum_i p(k|x_i); a second round
    recomputes them from the assignment of the first (SHOT does both rounds, SOCKET the first alone). A class that no
    image is predicted as has no centroid and is never assigned.

    Works CHUNK images at a time: the f_i together would be a second copy of the features, which are most of a job's memory.
    """
    K = p.shape[1]
    predicted = torch.bincount(p.argmax(1), minlength=K).nonzero().flatten()
    labels = torch.empty(len(p), dtype=torch.int64, device=p.device)
    for number in range(rounds):
        sums, weights = 0, 0
        for x, p_i, label in zip(features.split(CHUNK), p.split(CHUNK), labels.split(CHUNK), strict=True):
            weight = p_i.float() if number == 0 else F.one_hot(label, K).float()
            sums, weights = sums + weight.T @ _normalised(x), weights + weight.sum(0)
        centroids = F.normalize((sums / (weights[:, None] + 1e-8))[predicted], dim=1)
        for x, label in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            label.copy_(predicted[(_normalised(x) @ centroids.T).argmax(1)])
    return labels


def _normalised(features: Tensor) -> Tensor:
    """f_i, float32 [n, D + 1]."""
    return F.normalize(F.pad(features.float(), (0, 1), value=1.0), dim=1)


def churn(before: Tensor, after: Tensor) -> float:
    """Share of the labels [N] that changed from one epoch to the next, 0 to 1."""
    return (before != after).float().mean().item()
