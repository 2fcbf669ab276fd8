from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from worker.adaptation import evaluation
from worker.adaptation.image_sets import Images
from worker.adaptation.scaling import Range

RNG = np.random.default_rng(0)


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """One channel, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb, cov = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum(), (window * (a - ma) * (b - mb)).sum()
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_is_that_of_wang_et_al():
    x = RNG.random((2, 3, 16, 14)).astype(np.float32)
    y = (x + RNG.normal(0, 0.2, x.shape)).clip(0, 1).astype(np.float32)
    expected = [np.mean([ssim_by_hand(x[n, c].astype(float), y[n, c].astype(float)) for c in range(3)]) for n in range(2)]
    assert evaluation.ssim(torch.from_numpy(x), torch.from_numpy(y)).tolist() == pytest.approx(expected, rel=1e-4)
    assert evaluation.ssim(torch.from_numpy(x), torch.from_numpy(x)).tolist() == pytest.approx([1, 1])


def test_psnr_is_in_decibels():
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 1.0)])
    assert evaluation.psnr(x, y).tolist() == pytest.approx([20, 0], abs=1e-4)


def test_accuracy_is_also_told_by_class():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 2, 1, 0]), 3).float()
    found = evaluation.accuracy(logits, labels, ("a", "b", "absent"))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["per_class"] == {"a": 0.75, "b": 0.5}
    assert found["balanced_accuracy"] == pytest.approx(0.625)
    assert found["confusion"] == [[3, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_evidence_tells_sure_from_clueless_and_one_class_from_all():
    clueless = evaluation.evidence(torch.zeros(8, 4))
    assert clueless["entropy_share"] == pytest.approx(1)
    assert clueless["effective_classes"] == pytest.approx(4, rel=1e-5)
    sure = evaluation.evidence(100 * torch.eye(4))
    assert sure["mean_entropy"] == pytest.approx(0, abs=1e-6)
    assert sure["effective_classes"] == pytest.approx(4, rel=1e-5)
    one_class = evaluation.evidence(torch.tensor([[100.0, 0, 0, 0]] * 8))
    assert one_class["effective_classes"] == pytest.approx(1)
    assert one_class["largest_class_share"] == 1


@pytest.mark.parametrize("rows", [3, 8192])
def test_evidence_is_of_all_predictions_however_many_are_looked_at_at_a_time(rows, monkeypatch):
    monkeypatch.setattr(evaluation, "EVIDENCE_ROWS", rows)
    logits = RNG.normal(0, 2, (10, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mean_entropy, mean = -(p * np.log(p)).sum(1).mean(), p.mean(0)
    found = evaluation.evidence(torch.from_numpy(logits).float())
    assert found == {
        "mean_entropy": pytest.approx(mean_entropy, rel=1e-5),
        "entropy_share": pytest.approx(mean_entropy / np.log(4), rel=1e-5),
        "effective_classes": pytest.approx(np.exp(-(mean * np.log(mean)).sum()), rel=1e-5),
        "largest_class_share": np.bincount(p.argmax(1)).max() / 10,
    }


def images(n: int) -> Images:
    """8-bit noise, 20 x 20."""
    array = np.random.default_rng(1).integers(0, 256, (n, 1, 20, 20), dtype=np.uint8)
    return Images(array, [str(i) for i in range(n)], Range(8, 1.0, 0.0, 255.0, ""), 20)


def linear(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = x.flatten(1)[:, :6]
    return features, features[:, :3] - features[:, 3:]


def test_predictions_are_in_the_order_of_the_images_or_of_the_index():
    some = images(150)  # more than two batches
    told = []
    features, logits = evaluation.predict(linear, some, 16, torch.device("cpu"))
    expected = some.array[:, 0, 2, 2:8] / np.float32(255)  # the first row of the centre
    assert features.numpy() == pytest.approx(expected)
    assert logits.numpy() == pytest.approx(expected[:, :3] - expected[:, 3:], abs=1e-6)
    index = np.array([149, 3, 70])
    assert torch.equal(evaluation.predict(linear, some, 16, torch.device("cpu"), index)[0], features[index])
    other = lambda x: (x, 2 * linear(x)[1])  # noqa: E731
    models = {"one": linear, "other": other}
    found = evaluation.predict_logits(models, some, 16, torch.device("cpu"), index, done=told.append)
    assert torch.equal(found["one"], logits[index]) and torch.equal(found["other"], 2 * logits[index])
    assert told == [3, 3]


def test_who_asks_for_logits_does_not_keep_the_features():
    kept: list[weakref.ref] = []
    most = 0

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal most
        features, logits = linear(x)
        features = features.clone()
        kept.append(weakref.ref(features))
        most = max(most, sum(one() is not None for one in kept))
        return features, logits.clone()

    evaluation.predict_logits({"it": model}, images(640), 16, torch.device("cpu"))
    assert len(kept) == 10 and most <= 2


def test_agreement_is_of_the_named_classes():
    assert evaluation.agreement(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.6, 0.5], [0, 1]])) == 0.5
