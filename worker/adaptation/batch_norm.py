"""What the batch norms of a network see, and what they remember.

The running statistics are the one thing that the private data left behind in the source model. Instance, layer and group
norms keep none; a network without batch norms has nothing to match, and a loss over it is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worker.adaptation.losses import Statistics

EPSILON = 1e-6


def layers(network: nn.Module) -> list[nn.Module]:
    """The BatchNorm1d/2d/3d layers and their subclasses (timm's BatchNormAct2d), in the order of the network."""
    # The one base that is theirs and not instance norm's is torch's private one.
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def running(network: nn.Module) -> Statistics:
    """Copies of the running statistics of the layers that keep any, float32."""
    return [(n.running_mean.detach().float().clone(), n.running_var.detach().float().clone()) for n in _tracking(network)]


@contextmanager
def observed(network: nn.Module | None, images: int | None = None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The statistics of what enters each tracking layer in the forward passes inside, in the order of the network, with
    gradients; the list is filled when the block ends. images: of a batch, only the first so many count. None: nothing is looked at.
    """
    tracking = _tracking(network) if network is not None else []
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] = _Moments.apply(inputs[0][:images])

    handles = [layer.register_forward_pre_hook(look) for layer in tracking]
    found: list[tuple[Tensor, Tensor]] = []
    try:
        yield found
        found.extend(seen[layer] for layer in tracking)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def kept(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises a batch by its own statistics, as in training, but does not add them to the running ones."""
    tracking = layers(network)
    momenta = [layer.momentum for layer in tracking]
    for layer in tracking:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(tracking, momenta, strict=True):
            layer.momentum = momentum


def freeze(network: nn.Module) -> None:
    """Batch norm normalises by the running statistics, and keeps them, until the network's mode is next set."""
    for layer in _tracking(network):
        layer.eval()


def _tracking(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in layers(network) if layer.running_mean is not None and layer.running_var is not None]


class _Moments(torch.autograd.Function):
    """Mean and unbiased variance of each channel of x [N, C, ...], float32 [C], whatever the precision of x; the gradient has
    that of x. What torch.var_mean(x.float(), [0, 2, 3]) gives, for a tenth of its time on a CPU: reducing all but a middle
    dimension it is slow, and would have made a training step a fifth longer than its networks. Batch norm has the fast way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # The statistics come in the precision of the weights: without any, of bfloat16 they would be bfloat16.
        one = torch.ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        _, mu, inverse = torch.native_batch_norm(x, one, one, None, None, True, 0.0, EPSILON)
        n = x.numel() // x.shape[1]
        ctx.save_for_backward(x, mu)
        # Without an epsilon a constant channel, whose variance may come out below 0 by rounding, would be NaN.
        return mu, (inverse.pow(-2) - EPSILON).clamp_min(0) * (n / max(n - 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mu: Tensor, of_var: Tensor) -> Tensor:
        """d mu / d x = 1 / n, d var / d x = 2 (x - mu) / (n - 1)."""
        x, mu = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        slope = 2 * of_var / max(n - 1, 1)
        offset = of_mu / n - slope * mu
        offset, slope = (value.to(x.dtype).view(-1, *[1] * (x.ndim - 2)) for value in (offset, slope))
        return torch.addcmul(offset, x, slope)
