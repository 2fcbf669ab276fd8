from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.adaptation import pseudo_labels


def by_hand(features: np.ndarray, p: np.ndarray, rounds: int) -> list[int]:
    """SHOT's procedure, image by image."""
    f = [np.append(x, 1.0) / np.linalg.norm(np.append(x, 1.0)) for x in features]
    weight = [list(row) for row in p]
    present = sorted({int(np.argmax(row)) for row in p})
    labels: list[int] = []
    for _ in range(rounds):
        centroids = {
            k: sum(w[k] * x for w, x in zip(weight, f, strict=True)) / (sum(w[k] for w in weight) + 1e-8) for k in present
        }
        cosine = lambda a, b: a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12)  # noqa: E731
        labels = [max(present, key=lambda k: cosine(x, centroids[k])) for x in f]
        weight = [[float(k == label) for k in range(p.shape[1])] for label in labels]
    return labels


@pytest.mark.parametrize("chunk", [7, 4096])
def test_both_rounds_are_those_of_shot(chunk, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "CHUNK", chunk)
    rng = np.random.default_rng(1)
    for rounds in (1, 2):
        for _ in range(5):
            features = rng.normal(size=(40, 6)).astype(np.float32)
            z = features[:, :4] * 0.7 + rng.normal(0, 1, (40, 4))
            p = (np.exp(z) / np.exp(z).sum(1, keepdims=True)).astype(np.float32)
            found = pseudo_labels.assign(torch.from_numpy(features), torch.from_numpy(p), rounds)
            assert found.tolist() == by_hand(features, p, rounds)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that was made inside and is no view."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made._base is None and not any(made is one for one in args):
            self.elements = max(self.elements, made.numel())
        return made


def test_memory_does_not_grow_with_the_features():
    """Of 100,000 images they are a gigabyte: there is no room for a second one."""
    features = torch.randn(3 * pseudo_labels.CHUNK, 64, generator=torch.Generator().manual_seed(0))
    before = features.clone()
    with _Largest() as largest:
        pseudo_labels.assign(features, features[:, :5].softmax(1))
    assert pseudo_labels.CHUNK * 64 <= largest.elements <= pseudo_labels.CHUNK * (64 + 2)
    assert torch.equal(features, before), "they are only looked at"


def test_clusters_overrule_single_wrong_predictions():
    features = torch.tensor([[5.0, 0.0]] * 5 + [[0.0, 5.0]] * 5)
    p = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] + [[0.1, 0.9]] * 5)
    assert pseudo_labels.assign(features, p).tolist() == [0] * 5 + [1] * 5


def test_a_class_that_nothing_is_predicted_as_is_not_assigned():
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    p = torch.full((30, 3), 0.1)
    p[:15, 0] = p[15:, 2] = 0.8
    assert set(pseudo_labels.assign(features, p).tolist()) <= {0, 2}


def test_churn_is_the_share_that_changed():
    assert pseudo_labels.churn(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == 0.25
