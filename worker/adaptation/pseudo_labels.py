"""Pseudo-labels by nearest centroid (SHOT, Liang et al., arXiv 2002.08546, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def assign(features: Tensor, p: Tensor, rounds: int = 2) -> Tensor:
    """The nearest centroid of every image by cosine: int64 [N].

    features: [N, D] of the target extractor; p: [N, K] its class probabilities. A feature gets a 1 appended and is then
    L2-normalised, f_i, as SHOT's released code does. Centroids c_k = sum_i p(k|x_i) f_i / sum_i p(k|x_i); a second round
    recomputes them from the assignment of the first (SHOT does both rounds, SOCKET the first alone). A class that no
    image is predicted as has no centroid and is never assigned.
    """
    f = F.normalize(torch.cat([features.float(), features.new_ones(len(features), 1, dtype=torch.float32)], 1), dim=1)
    weight = p.float()
    K = p.shape[1]
    predicted = torch.bincount(p.argmax(1), minlength=K).nonzero().flatten()
    for _ in range(rounds):
        centroids = weight.T @ f / (weight.sum(0)[:, None] + 1e-8)
        similarity = f @ F.normalize(centroids[predicted], dim=1).T
        labels = predicted[similarity.argmax(1)]
        weight = F.one_hot(labels, K).float()
    return labels


def churn(before: Tensor, after: Tensor) -> float:
    """Share of the labels [N] that changed from one epoch to the next, 0 to 1."""
    return (before != after).float().mean().item()
