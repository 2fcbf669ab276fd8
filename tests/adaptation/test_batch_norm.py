"""Statistics of batch norms: against numpy, in both modes, and without a trace in the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from worker.adaptation import batch_norm


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5))


@pytest.fixture
def x(network) -> torch.Tensor:
    x = torch.randn(6, 3, 8, 8)
    network(x)
    return x


@pytest.mark.parametrize("training", [True, False])
def test_what_is_observed_is_mean_and_variance_of_what_enters_each_layer(network, x, training):
    network.train(training)
    with batch_norm.observed(network) as seen:
        network(x)
    enters = network[0](x).detach().numpy().astype(np.float64)
    assert len(seen) == 2
    assert seen[0][0].detach().numpy() == pytest.approx(enters.mean((0, 2, 3)), abs=1e-5)
    assert seen[0][1].detach().numpy() == pytest.approx(enters.var((0, 2, 3), ddof=1), rel=1e-4)
    assert seen[1][0].shape == (5,)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e3])
def test_a_constant_channel_has_variance_0_and_a_finite_gradient(value):
    network = nn.BatchNorm2d(2).eval()
    x = torch.stack([torch.full((4, 9, 7), value), torch.randn(4, 9, 7)], dim=1).requires_grad_()
    with batch_norm.observed(network) as seen:
        network(x)
    assert seen[0][1][0].item() == pytest.approx(0, abs=1e-5 * max(1, value**2))
    seen[0][1].sum().backward()
    assert x.grad.isfinite().all()


def test_only_the_first_images_count_where_asked(network, x):
    network.eval()
    with batch_norm.observed(network) as alone:
        network(x[:2])
    with batch_norm.observed(network, images=2) as first:
        network(x)
    for (mu, var), (mu_2, var_2) in zip(alone, first, strict=True):
        assert torch.allclose(mu, mu_2, atol=1e-5)
        assert torch.allclose(var, var_2, atol=1e-5)


def test_gradients_reach_the_images(network, x):
    network.eval()
    x.requires_grad_()
    with batch_norm.observed(network) as seen:
        network(x)
    seen[0][1].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_mean_and_variance_beside_those_of_the_layer(precision, tolerance, offset):
    """By hand, in float64: d mu / d x = 1 / n and d var / d x = 2 (x - mu) / (n - 1) on the first images, added to what comes
    through the layer, which in eval mode is its weight over the running deviation."""
    layer, images = nn.BatchNorm2d(4).eval(), 5
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(offset, 2, (8, 4, 3, 5))).to(precision)
    x = values.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    a, b = (torch.from_numpy(rng.normal(0, 50, 4)).float() for _ in range(2))
    with batch_norm.observed(layer, images) as seen:
        y = layer(x)
    ((mu, var),) = seen
    (y.float().sum() + (a * mu).sum() + (b * var).sum()).backward()

    exact = values.double().numpy()
    first, n = exact[:images], images * 15
    centred = first - first.mean((0, 2, 3), keepdims=True)
    expected = np.full(exact.shape, 1 / np.sqrt(1 + 1e-5))
    expected[:images] += (a.numpy() / n)[None, :, None, None] + 2 * b.numpy()[None, :, None, None] * centred / (n - 1)
    assert mu.dtype == var.dtype == torch.float32, "statistics are exact where the images are not"
    assert mu.detach().numpy() == pytest.approx(first.mean((0, 2, 3)), rel=1e-5, abs=1e-5)
    assert var.detach().numpy() == pytest.approx(first.var((0, 2, 3), ddof=1), rel=1e-4)
    assert x.grad.dtype == precision
    scale = np.abs(expected).max() * max(1.0, offset / 2)
    assert x.grad.double().numpy() == pytest.approx(expected, abs=tolerance * scale)


def test_a_channel_that_never_changes_has_variance_0(network):
    with batch_norm.observed(network[1]) as seen:
        network[1](torch.full((6, 4, 3, 3), 0.3))
    assert seen[0][0].tolist() == pytest.approx([0.3] * 4)
    assert seen[0][1].tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_what_the_network_says_is_the_same_whether_looked_at_or_not(network, x):
    network.eval()
    with batch_norm.observed(network):
        looked_at = network(x)
    assert torch.equal(looked_at, network(x))


def test_nothing_is_left_on_the_network_even_after_an_error(network, x):
    with pytest.raises(RuntimeError), batch_norm.observed(network):
        network(x[:, :2])
    assert not any(layer._forward_pre_hooks for layer in network)
    with batch_norm.observed(None) as seen:
        network(x)
    assert seen == []


def test_running_statistics_are_copies(network, x):
    before = batch_norm.running(network)
    network.train()(x + 5)
    after = batch_norm.running(network)
    assert [len(mu) for mu, _ in before] == [4, 5]
    assert not torch.equal(before[0][0], after[0][0])


def test_kept_normalises_as_in_training_and_remembers_nothing(network, x):
    network.train()
    before = batch_norm.running(network)
    with batch_norm.kept(network):
        inside = network(x)
    assert all(
        torch.equal(a, b)
        for one, two in zip(before, batch_norm.running(network), strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert torch.allclose(network(x), inside)
    assert network[1].momentum == 0.1


def test_a_network_without_batch_norm_has_none():
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.InstanceNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    assert batch_norm.running(network) == []
    assert len(batch_norm.layers(network)) == 1
