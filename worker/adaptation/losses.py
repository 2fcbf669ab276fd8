"""The losses of method.md as pure functions of tensors, under the symbols of Zhu, Chen and Wang (arXiv 2401.05014).

Every function returns a scalar, a mean over the batch, and computes in float32 whatever the precision of the forward
pass, so that logarithms of small probabilities survive bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Statistics = Sequence[tuple[Tensor, Tensor]]
"""(mean, variance) of every batch norm of a network, in its order."""
BN_EPSILON = 1e-5  # batch norm's own


def L_rec(translated: Tensor, x_ti_s: Tensor) -> Tensor:
    """Reconstruction of a pair in pixel space: mean (T(x_ti_t) - x_ti_s)^2 over batch, channels and pixels.

    translated, x_ti_s: [N, 3, H, W] in [0, 1], the same crop of both. Source: TGMB, arXiv 2401.05014.

    >>> L_rec(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)).item()
    0.25
    """
    return F.mse_loss(translated.float(), x_ti_s.float())


def L_rec_f(f_s: Tensor, translated: Tensor) -> Tensor:
    """Reconstruction of a pair in the features of the source model: sum ||f_s(T(x_ti_t)) - f_s(x_ti_s)||^2 over the batch,
    over sum ||f_s(x_ti_s)||^2, so that it has no scale: 1 is "as far as nothing at all", 0 perfect.

    f_s: [N, D] of f_s on the RGB image, no gradient; translated: [N, D] of f_s on the translation at the same crop. Ours,
    after perceptual losses (Johnson et al., arXiv 1603.08155).

    >>> L_rec_f(torch.ones(2, 4), torch.zeros(2, 4)).item()
    1.0
    """
    f_s = f_s.float()
    return (translated.float() - f_s).square().sum() / f_s.square().sum().clamp_min(1e-12)


def L_D(d_ti: Tensor, d_tr: Tensor) -> Tensor:
    """Domain loss of the discriminator D on source features: -(mean log s(d_ti) + mean log (1 - s(d_tr))) / 2, s the sigmoid.

    d_ti, d_tr: logits [N], [M] of D on f_s(T(x_ti_t)) and f_s(T(x_tr_t)). D minimises it; T, behind `reverse_gradient`,
    maximises it. ln 2 where D cannot tell them apart. Source: DANN, Ganin et al., JMLR 2016, equation 9; TGMB's adversary.

    >>> round(L_D(torch.zeros(4), torch.zeros(3)).item(), 4)
    0.6931
    """
    return (F.softplus(-d_ti.float()).mean() + F.softplus(d_tr.float()).mean()) / 2


def L_IM(logits: Tensor) -> Tensor:
    """Information maximisation: mean_i H(p_i) - H(mean_i p_i), p = softmax(logits), H the entropy in nats.

    logits: [N, K] of the source model on translated TR images. From -ln K (sure of each image, all classes alike) to 0.
    Source: SHOT, Liang et al., arXiv 2002.08546, equations 4 and 5 (L_ent + L_div).

    >>> round(L_IM(torch.tensor([[50.0, 0.0], [0.0, 50.0]])).item(), 4)
    -0.6931
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    p = log_p.exp()
    return -(p * log_p).sum(1).mean() - entropy(p.mean(0))


def L_KL(teacher: Tensor, student: Tensor, by_confidence: bool = False) -> Tensor:
    """Distillation: mean_i KL(p_s || p_t) = mean_i sum_k p_s (log p_s - log p_t). by_confidence (ours): each image counts as
    1 - H(p_s) / ln K, so that a teacher that does not know does not teach.

    teacher: logits [N, K] of the source model on T(x_tr_t), no gradient; student: logits [N, K] of the target model on
    x_tr_t at the same crop. Source: TGKT, arXiv 2401.05014.

    >>> L_KL(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])).item()
    0.0
    """
    log_p = F.log_softmax(teacher.float(), 1)
    divergence = F.kl_div(F.log_softmax(student.float(), 1), log_p, log_target=True, reduction="none").sum(1)
    if by_confidence:
        divergence = divergence * (1 - entropy(log_p.exp()) / math.log(log_p.shape[1]))
    return divergence.mean()


def L_feat(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Features of the two images of a pair: mean (f_s(x_ti_s) - f_t(x_ti_t))^2 over batch and dimensions.

    f_s: [N, D] of the source extractor on RGB, no gradient; f_t: [N, D] of the target extractor at the same crop.
    Source: TGKT, arXiv 2401.05014; SOCKET's L_TI (arXiv 2209.04027) without its square root.

    >>> L_feat(torch.zeros(2, 4), torch.ones(2, 4)).item()
    1.0
    """
    return F.mse_loss(f_t.float(), f_s.float())


def L_feat_norm(f_s: Tensor, f_t: Tensor) -> Tensor:
    """SOCKET's own form of L_feat: the unsquared norm of the whole batch's difference, ||f_s(x_ti_s) - f_t(x_ti_t)||_F.

    f_s, f_t: [N, D] as for L_feat. Source: SOCKET, arXiv 2209.04027, as its released code has it.

    >>> L_feat_norm(torch.zeros(2, 2), torch.ones(2, 2)).item()
    2.0
    """
    return torch.linalg.vector_norm(f_t.float() - f_s.float())


def L_BN(statistics: Statistics, running: Statistics) -> Tensor:
    """Batch-norm statistics of a batch against those that the source model was trained on, without a scale: the mean over
    layers of the mean over channels of KL(N(mu, var) || N(mu^s, var^s)) = (var / var^s + (mu - mu^s)^2 / var^s - 1 - ln(var / var^s)) / 2.

    statistics, running: (mu_l, var_l), each [C_l], of every batch norm in the order of the network. Ours, after SOCKET's
    `L_d`, whose distances grow with the variances: thousands in EfficientNets, tens in ResNets.

    >>> zero, one = torch.zeros(4), torch.ones(4)
    >>> round(L_BN([(one, one)], [(zero, one)]).item(), 4)
    0.5
    """
    if len(statistics) != len(running):
        raise ValueError(f"statistics of {len(statistics)} layers against those of {len(running)}")
    if not statistics:
        return torch.zeros(())
    # All channels of all layers in one: a layer at a time, this was half of what a step asks of a GPU.
    mu, var = (torch.cat(values) for values in zip(*statistics, strict=True))
    mu_s, var_s = (torch.cat(values) for values in zip(*running, strict=True))
    var_s = var_s + BN_EPSILON
    ratio = (var + BN_EPSILON) / var_s
    divergences = ratio + (mu - mu_s).square() / var_s - 1 - ratio.log()
    return (divergences * _shares(tuple(len(mean) for mean, _ in running), mu.device)).sum() / 2


@lru_cache(maxsize=8)
def _shares(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """What each channel counts in the mean over layers of the mean over channels, float32 [sum of channels]."""
    counts = torch.tensor(channels)
    return (1 / (len(channels) * counts)).repeat_interleave(counts).to(device)


def L_d(statistics: Statistics, running: Statistics, first: float = 10.0) -> Tensor:
    """SOCKET's form of L_BN: sum_l w_l (||mu_l - mu_l^s||_2 + ||var_l - var_l^s||_2), w = `first` for the first layer, 1 for the others.

    statistics, running: as for L_BN. Source: SOCKET, arXiv 2209.04027.

    >>> zero, one = torch.zeros(4), torch.ones(4)
    >>> L_d([(one, one)], [(zero, one)]).item()
    20.0
    """
    if len(statistics) != len(running):
        raise ValueError(f"statistics of {len(statistics)} layers against those of {len(running)}")
    distances = [
        torch.linalg.vector_norm(mu - mu_s) + torch.linalg.vector_norm(var - var_s)
        for (mu, var), (mu_s, var_s) in zip(statistics, running, strict=True)
    ]
    if not distances:
        return torch.zeros(())
    return torch.stack([first * distances[0], *distances[1:]]).sum()


def L_self(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy against pseudo-labels: mean_i -log p_t(label_i | x_i).

    logits: [N, K] of the target model; labels: int64 [N] of `pseudo_labels.assign`. Source: SHOT, arXiv 2002.08546,
    equation 7; TGKT's self-supervision.

    >>> round(L_self(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3863
    """
    return F.cross_entropy(logits.float(), labels)


def entropy(p: Tensor) -> Tensor:
    """H(p) = -sum_k p_k ln p_k over the last dimension, in nats; 0 ln 0 = 0.

    >>> round(entropy(torch.tensor([0.5, 0.5])).item(), 4)
    0.6931
    """
    return -torch.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum(-1)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(features: Tensor, strength: float) -> Tensor:
    """The features, unchanged; their gradient is multiplied by -strength. Source: DANN, Ganin et al., JMLR 2016, section 4.2."""
    return _ReverseGradient.apply(features, strength)


def dann_ramp(progress: float) -> float:
    """Strength of the reversed gradient, 2 / (1 + exp(-10 p)) - 1, for p from 0 to 1: D learns before T obeys it.
    Source: DANN, Ganin et al., JMLR 2016, section 5.2.2."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def discriminator(dimensions: int, hidden: int = 256) -> nn.Module:
    """D: features [N, dimensions] -> logits [N]; positive means "task-irrelevant". Normalised at its entrance, since
    extractors differ in the scale of their features by orders of magnitude."""
    return nn.Sequential(
        nn.LayerNorm(dimensions, elementwise_affine=False),
        nn.Linear(dimensions, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
        nn.Flatten(0),
    )
