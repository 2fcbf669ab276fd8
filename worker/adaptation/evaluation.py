"""How well an adaptation did: with labels where there are some, and by evidence that needs none.

All at centre crops, in eval mode, in fp32 (on a GPU TF32): what a user of the published weights will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.adaptation.device import to_device
from worker.adaptation.image_sets import CPU, Images, Pairs
from worker.adaptation.losses import entropy
from worker.adaptation.prefetch import prefetched
from worker.adaptation.transforms import apply, centre_crops

Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images of the sensor [N, C, H, W] in [0, 1] -> features [N, D], logits [N, K]."""
BATCH = 64
EVIDENCE_ROWS = 8192
"""Predictions at a time: the entropy of all at once would hold several copies of them."""


def centre_batch(images: Images, index: np.ndarray, size: int, device: torch.device = CPU) -> Tensor:
    """[n, C, size, size]: the centre crops of some images."""
    x = images.batch(index, device)
    return apply(x, centre_crops(len(x), *x.shape[-2:], size), size)


def centre_pairs(pairs: Pairs, index: np.ndarray, size: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """(source [n, 3, size, size], target [n, C, size, size]): the centre crops of some pairs."""
    source, target = pairs.batch(index, device)
    both = apply(torch.cat([source, target], 1), centre_crops(len(source), *source.shape[-2:], size), size)
    return both[:, :3], both[:, 3:]


def spread(index: np.ndarray, most: int) -> np.ndarray:
    """`most` of the index, evenly spread over it, in its order; all of a shorter one."""
    return index[np.linspace(0, len(index) - 1, min(len(index), most)).round().astype(int)]


def chunks(index: np.ndarray) -> list[np.ndarray]:
    return [index[i : i + BATCH] for i in range(0, len(index), BATCH)]


@torch.no_grad()
def predict(
    model: Model, images: Images, size: int, device: torch.device, index: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Features [N, D] and logits [N, K], float32 on the CPU, of all images or of those of the index."""
    features = None
    parts, place = [], 0
    for x in _batches(images, size, device, index):
        f, logits = model(x)
        if features is None:  # put in place at once: parts that are joined at the end are held twice
            features = torch.empty(len(images) if index is None else len(index), f.shape[1])
        features[place : (place := place + len(f))] = f
        parts.append(logits.float().cpu())
    if features is None:
        raise ValueError("no images to predict")
    return features, torch.cat(parts)


@torch.no_grad()
def predict_logits(
    models: Mapping[str, Model],
    images: Images,
    size: int,
    device: torch.device,
    index: np.ndarray | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Logits [N, K], float32 on the CPU, of each model; without the features, which of 100,000 images may be a gigabyte. done: told the
    number of images after each batch, once for each model."""
    parts: dict[str, list[Tensor]] = {name: [] for name in models}
    for x in _batches(images, size, device, index):
        for name, model in models.items():
            parts[name].append(model(x)[1].float().cpu())
            done(len(x))
    return {name: torch.cat(some) for name, some in parts.items()}


def _batches(images: Images, size: int, device: torch.device, index: np.ndarray | None) -> Iterator[Tensor]:
    """The centre crops [n, C, size, size], on the device; the next batch is made meanwhile."""
    wanted = np.arange(len(images)) if index is None else index
    for _, x in prefetched(lambda part: centre_batch(images, part, size, device), chunks(wanted)):
        yield to_device(x, device)


def evidence(logits: Tensor) -> dict[str, float]:
    """What predictions [N, K] say of themselves. mean_entropy: in nats; entropy_share: of ln K, 0 sure to 1 clueless;
    effective_classes: exp(H(mean p)), 1 where everything is one class to K; largest_class_share: images that the most
    frequent class was predicted for."""
    N, K = logits.shape
    entropies, sum_p = logits.new_zeros(()), logits.new_zeros(K)
    for part in logits.split(EVIDENCE_ROWS):
        p = part.softmax(1)
        entropies, sum_p = entropies + entropy(p).sum(), sum_p + p.sum(0)
    mean_entropy = entropies.item() / N
    return {
        "mean_entropy": mean_entropy,
        "entropy_share": mean_entropy / float(np.log(K)),
        "effective_classes": entropy(sum_p / N).exp().item(),
        "largest_class_share": torch.bincount(logits.argmax(1), minlength=K).max().item() / N,
    }


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of the images for which two sets of logits [N, K] name the same class."""
    return (a.argmax(1) == b.argmax(1)).float().mean().item()


def accuracy(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict:
    """logits [N, K], labels int64 [N]. per_class: recall of every class that occurs; balanced_accuracy: their mean;
    confusion: K rows of the true class, K columns of the predicted one, counts."""
    K = len(classes)
    confusion = torch.bincount(labels * K + logits.argmax(1), minlength=K * K).reshape(K, K)
    counts = confusion.sum(1)
    recall = {name: (confusion[k, k] / counts[k]).item() for k, name in enumerate(classes) if counts[k] > 0}
    return {
        "accuracy": (confusion.diagonal().sum() / counts.sum()).item(),
        "balanced_accuracy": float(np.mean(list(recall.values()))),
        "per_class": recall,
        "confusion": confusion.tolist(),
    }


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image [N], in dB: 10 log10(1 / MSE). x, y: [N, C, H, W] in [0, 1]."""
    return -10 * torch.log10((x - y).square().mean((1, 2, 3)).clamp_min(1e-10))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each image [N], mean over channels and over the windows that lie wholly inside.

    x, y: [N, C, H, W] in [0, 1], H and W at least 11. Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03,
    L = 1, moments weighted by the window. Source: Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 13(4), 2004, section III.
    """
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()
    C = x.shape[1]

    def mean(z: Tensor) -> Tensor:
        z = F.conv2d(z, window.view(1, 1, 11, 1).expand(C, 1, 11, 1), groups=C)
        return F.conv2d(z, window.view(1, 1, 1, 11).expand(C, 1, 1, 11), groups=C)

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mu_x * mu_y + c1) * (2 * cov + c2)) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))


def feature_distance(a: Tensor, b: Tensor) -> float:
    """Mean squared difference of features [N, D] over images and dimensions: L_feat without training."""
    return F.mse_loss(a, b).item()
