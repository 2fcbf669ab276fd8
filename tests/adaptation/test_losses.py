"""Every loss against an independent computation in numpy, in double precision."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from worker.adaptation import losses, report

RNG = np.random.default_rng(0)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def t(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def test_docstring_examples_hold():
    for module in (losses, report):
        failed, tried = doctest.testmod(module, extraglobs={"torch": torch})
        assert tried > 0
        assert failed == 0


def test_L_rec_is_the_mean_square_over_pixels():
    a, b = RNG.random((3, 3, 5, 4)), RNG.random((3, 3, 5, 4))
    assert losses.L_rec(t(a), t(b)).item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)


def test_L_D_is_the_cross_entropy_of_the_two_domains():
    ti, tr = RNG.normal(0, 3, 6), RNG.normal(0, 3, 4)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    expected = -(np.log(sigmoid(ti)).mean() + np.log(1 - sigmoid(tr)).mean()) / 2
    assert losses.L_D(t(ti), t(tr)).item() == pytest.approx(expected, rel=1e-5)


def test_L_IM_is_mean_entropy_less_entropy_of_the_mean():
    z = RNG.normal(0, 3, (7, 5))
    p = softmax(z)
    expected = -(p * np.log(p)).sum(1).mean() + (p.mean(0) * np.log(p.mean(0))).sum()
    assert losses.L_IM(t(z)).item() == pytest.approx(expected, rel=1e-4)


def test_L_IM_survives_certainty():
    z = torch.tensor([[1e4, 0.0, -1e4]] * 4, requires_grad=True)
    loss = losses.L_IM(z)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_L_KL_is_from_teacher_to_student():
    a, b = RNG.normal(0, 2, (6, 4)), RNG.normal(0, 2, (6, 4))
    p, q = softmax(a), softmax(b)
    assert losses.L_KL(t(a), t(b)).item() == pytest.approx((p * (np.log(p) - np.log(q))).sum(1).mean(), rel=1e-4)
    assert losses.L_KL(t(a), t(b)).item() != pytest.approx(losses.L_KL(t(b), t(a)).item(), rel=1e-3)


def test_L_feat_is_the_mean_square_over_dimensions():
    a, b = RNG.normal(size=(5, 16)), RNG.normal(size=(5, 16))
    assert losses.L_feat(t(a), t(b)).item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)


def test_L_feat_norm_is_the_frobenius_norm_of_the_batch():
    a, b = RNG.normal(size=(5, 16)), RNG.normal(size=(5, 16))
    assert losses.L_feat_norm(t(a), t(b)).item() == pytest.approx(np.linalg.norm(a - b), rel=1e-5)


def test_L_rec_f_has_no_scale():
    a, b = RNG.normal(size=(5, 16)), RNG.normal(size=(5, 16))
    assert losses.L_rec_f(t(a), t(b)).item() == pytest.approx(((a - b) ** 2).sum() / (a**2).sum(), rel=1e-5)
    assert losses.L_rec_f(t(7 * a), t(7 * b)).item() == pytest.approx(losses.L_rec_f(t(a), t(b)).item(), rel=1e-5)


def test_L_BN_is_the_divergence_of_the_two_gaussians_of_each_channel():
    here = [(RNG.normal(size=c), RNG.uniform(0.5, 2, c)) for c in (3, 5)]
    there = [(RNG.normal(size=c), RNG.uniform(0.5, 2, c)) for c in (3, 5)]
    divergences = [
        np.mean(np.log(np.sqrt(d / b)) + (b + (a - c) ** 2) / (2 * d) - 0.5) for (a, b), (c, d) in zip(here, there, strict=True)
    ]
    found = losses.L_BN([(t(a), t(b)) for a, b in here], [(t(a), t(b)) for a, b in there])
    assert found.item() == pytest.approx(np.mean(divergences), rel=1e-3)
    scaled = [[(t(1000 * a), t(1e6 * b)) for a, b in layers] for layers in (here, there)]
    assert losses.L_BN(*scaled).item() == pytest.approx(found.item(), rel=1e-3)


def test_L_BN_of_dead_channels_is_finite():
    dead = [(torch.zeros(4), torch.zeros(4))]
    assert losses.L_BN(dead, dead).item() == 0
    assert losses.L_BN(dead, [(torch.ones(4), torch.ones(4))]).isfinite()


def test_L_d_adds_the_distances_of_means_and_variances_and_weighs_the_first_layer_ten_times():
    here = [(RNG.normal(size=c), RNG.random(c)) for c in (3, 5)]
    there = [(RNG.normal(size=c), RNG.random(c)) for c in (3, 5)]
    distances = [np.linalg.norm(a - c) + np.linalg.norm(b - d) for (a, b), (c, d) in zip(here, there, strict=True)]
    found = losses.L_d([(t(a), t(b)) for a, b in here], [(t(a), t(b)) for a, b in there])
    assert found.item() == pytest.approx(10 * distances[0] + distances[1], rel=1e-5)


def test_L_BN_is_nothing_for_a_network_without_batch_norm_and_refuses_another_network():
    assert losses.L_BN([], []).item() == 0
    with pytest.raises(ValueError, match="1 layers against those of 0"):
        losses.L_BN([(t(np.ones(2)), t(np.ones(2)))], [])


def test_L_KL_by_confidence_leaves_out_what_the_teacher_does_not_know():
    sure, student = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.5]])
    assert losses.L_KL(sure, student, by_confidence=True).item() == pytest.approx(losses.L_KL(sure, student).item(), rel=1e-5)
    assert losses.L_KL(torch.zeros(1, 3), student, by_confidence=True).item() == pytest.approx(0, abs=1e-6)


def test_L_self_is_the_cross_entropy_of_pseudo_labels():
    z, labels = RNG.normal(0, 2, (6, 4)), RNG.integers(0, 4, 6)
    expected = -np.log(softmax(z)[np.arange(6), labels]).mean()
    assert losses.L_self(t(z), torch.from_numpy(labels)).item() == pytest.approx(expected, rel=1e-5)


def test_losses_of_half_precision_logits_are_computed_in_float32():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert losses.L_IM(z).dtype == torch.float32
    assert losses.L_IM(z).item() == losses.L_IM(z.float()).item()


def test_the_translator_is_trained_against_the_discriminator():
    features = torch.ones(3, 2, requires_grad=True)
    losses.reverse_gradient(features, 0.25).sum().backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[-0.25, -0.25]] * 3


def test_the_adversary_grows_from_nothing_to_one():
    ramp = [losses.dann_ramp(p) for p in (0, 0.1, 0.5, 1)]
    assert ramp[0] == 0
    assert ramp == sorted(ramp)
    assert ramp[-1] == pytest.approx(2 / (1 + np.exp(-10)) - 1)


def test_the_discriminator_gives_one_logit_an_image():
    assert losses.discriminator(12)(torch.randn(5, 12)).shape == (5,)
