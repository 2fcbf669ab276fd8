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

from worker.adaptation import parallel
from worker.adaptation.losses import Statistics

EPSILON = 1e-6


def layers(network: nn.Module) -> list[nn.Module]:
    """The BatchNorm1d/2d/3d layers and their subclasses (timm's BatchNormAct2d), in the order of the network."""
    # The one base that is theirs and not instance norm's is torch's private one.
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def running(network: nn.Module) -> Statistics:
    """Copies of the running statistics of the layers that keep any, float32."""
    return [(n.running_mean.detach().float().clone(), n.running_var.detach().float().clone()) for n in tracking(network)]


@contextmanager
def observed(network: nn.Module | None, images: int | None = None, of_all: bool = False) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The statistics of what enters each tracking layer in the forward passes inside, in the order of the network, with
    gradients; the list is filled when the block ends. images: of a batch, only the first so many count. of_all: the batch is this
    process's share, and the statistics are those of all shares. network None: nothing is looked at.
    """
    looked_at = tracking(network) if network is not None else []
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    counts: dict[nn.Module, int] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x, mu, var = _Moments.apply(inputs[0], images, layer.running_mean)
        seen[layer] = mu, var
        counts[layer] = x[:images].numel() // x.shape[1]
        return x

    handles = [layer.register_forward_pre_hook(look) for layer in looked_at]
    found: list[tuple[Tensor, Tensor]] = []
    try:
        yield found
        found.extend(seen[layer] for layer in looked_at)
        if of_all and found and parallel.size() > 1:
            found[:] = _of_all(found, [counts[layer] for layer in looked_at])
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def kept(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises a batch by its own statistics, as in training, but does not add them to the running ones."""
    found = layers(network)
    momenta = [layer.momentum for layer in found]
    for layer in found:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(found, momenta, strict=True):
            layer.momentum = momentum


def freeze(network: nn.Module) -> None:
    """Batch norm normalises by the running statistics, and keeps them, until the network's mode is next set."""
    for layer in tracking(network):
        layer.eval()


def tracking(network: nn.Module) -> list[nn.Module]:
    """Those of the layers that keep running statistics."""
    return [layer for layer in layers(network) if layer.running_mean is not None and layer.running_var is not None]


def _of_all(found: list[tuple[Tensor, Tensor]], counts: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Of all processes, from this one's statistics, each of as many values as `counts` says: told each other for all layers at once."""
    channels = [len(mu) for mu, _ in found]
    mu, var = (torch.cat(values) for values in zip(*found, strict=True))
    n = torch.tensor(counts).repeat_interleave(torch.tensor(channels)).to(mu.device)
    mu, var = parallel.moments(mu, var, n)
    return list(zip(mu.split(channels), var.split(channels), strict=True))


class _Moments(torch.autograd.Function):
    """x [N, C, ...] as it is, and of its first `images` images mean and unbiased variance of each channel, in the precision of
    `like` [C].

    Gives what torch.var_mean(x[:images].float(), [0, 2, 3]) would, for a tenth of its time on a CPU: it is slow at reducing
    all but a middle dimension, and made a training step a fifth longer than its networks. Batch norm has a fast way. x goes
    through, so that the two gradients that it gets are added here, in one pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, images: int | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = x[:images]
        if first.is_cuda:
            mu, inverse = torch.batch_norm_stats(first, EPSILON)
        else:  # The statistics come in the precision of the weights, whatever those are and x is.
            _, mu, inverse = torch.native_batch_norm(first, like, like, None, None, True, 0.0, EPSILON)
        n = first.numel() // x.shape[1]
        ctx.save_for_backward(first, mu)
        # Without an epsilon a constant channel, whose variance may come out below 0 by rounding, would be NaN.
        return x.view_as(x), mu, inverse.pow_(-2).sub_(EPSILON).clamp_min_(0).mul_(n / max(n - 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor, of_mu: Tensor, of_var: Tensor) -> tuple[Tensor, None, None]:
        """d mu / d x = 1 / n, d var / d x = 2 (x - mu) / (n - 1)."""
        first, mu = ctx.saved_tensors
        n = first.numel() // first.shape[1]
        slope = of_var * (2 / max(n - 1, 1))
        offset = torch.addcmul(of_mu / n, slope, mu, value=-1)
        slope, offset = (value.to(first.dtype).view(-1, *[1] * (first.ndim - 2)) for value in (slope, offset))
        gradient = of_x.clone()
        gradient[: len(first)].addcmul_(first, slope).add_(offset)
        return gradient, None, None
