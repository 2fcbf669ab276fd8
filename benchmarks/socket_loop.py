"""The loop of SOCKET (Ahmed et al., arXiv 2209.04027) the straightforward way, written by us from its description: files are
opened, decoded and transformed one by one in every epoch by a torch DataLoader, and nothing is kept.

    target, TI depth   16-bit PNG by 65535, in three channels
    each image         Resize, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize by Pillow and torchvision
    a step             the student on a target batch and on a TI batch, both in training mode; the source extractor on TI RGB;
                       L_IM, L_self, L_feat (norm) and L_BN, its statistics by hooks; SGD; every loss is read to be shown
    an epoch           pseudo-labels by a pass over a test loader, from the files again

Networks and losses are the engine's, so that two loops differ in how, not in what. Where the description leaves a choice, the
faster one is taken: depth is resized in one channel before it is repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as tv

from app.method_settings import LossWeights, TransferSettings
from app.spec import InputSpec
from worker.adaptation import losses, pseudo_labels
from worker.adaptation.source_model import Classifier

ENDLESS = 10**9
Transform = Callable[[Image.Image], Tensor]


def open_depth(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return Image.fromarray(np.asarray(image, dtype=np.float32) / np.float32(65535))


def open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def training(input: InputSpec, channels: int) -> Transform:
    crop = [tv.RandomCrop(input.size), tv.RandomHorizontalFlip()]
    return tv.Compose([_resize(input), *crop, tv.ToTensor(), *_finish(input, channels)])


def testing(input: InputSpec, channels: int) -> Transform:
    return tv.Compose([_resize(input), tv.CenterCrop(input.size), tv.ToTensor(), *_finish(input, channels)])


def _resize(input: InputSpec) -> Transform:
    return tv.Resize(round(input.size / input.crop_ratio))


def _finish(input: InputSpec, channels: int) -> list[Transform]:
    return [*([tv.Lambda(_repeat)] if channels == 1 else []), tv.Normalize(input.mean, input.std)]


def _repeat(x: Tensor) -> Tensor:
    return x.expand(3, -1, -1)


class TargetFiles(Dataset):
    """An item: (image [3, size, size], its number)."""

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(open_depth(self.paths[i])), i


class PairFiles(Dataset):
    """An item: (RGB [3, size, size], depth [3, size, size])."""

    def __init__(self, rgb: Sequence[Path], depth: Sequence[Path], input: InputSpec) -> None:
        self.rgb, self.depth = rgb, depth
        self.of_rgb, self.of_depth = training(input, 3), training(input, 1)

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.of_rgb(open_rgb(self.rgb[i])), self.of_depth(open_depth(self.depth[i]))


def loader(files: Dataset, batch_size: int, workers: int) -> DataLoader:
    """Endless, so that a stretch of steps that is timed leaves the workers' queues as full as it found them."""
    sampler = RandomSampler(files, replacement=True, num_samples=ENDLESS)
    return DataLoader(files, batch_size, sampler=sampler, num_workers=workers, pin_memory=torch.cuda.is_available())


def steps(source: Classifier, target: DataLoader, pairs: DataLoader, w: LossWeights, s: TransferSettings) -> Iterator[None]:
    """Goes on after each step, when its losses have been read. source: frozen, in eval mode; the loop runs where it lies."""
    device = next(source.parameters()).device
    student = copy.deepcopy(source)
    student.f.requires_grad_(True)
    sgd = SGD(student.f.parameters(), s.lr, s.momentum, weight_decay=s.weight_decay, nesterov=True)
    labels = torch.zeros(len(target.dataset), dtype=torch.int64, device=device)
    layers = [layer for layer in student.modules() if isinstance(layer, nn.BatchNorm2d)]
    running = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    student.train()
    for (x, index), (rgb, depth) in zip(target, pairs, strict=True):
        x, index, rgb, depth = (tensor.to(device, non_blocking=True) for tensor in (x, index, rgb, depth))
        with _statistics(layers) as seen:
            logits = student.h(student.f(x))
        f_t = student.f(depth)
        with torch.no_grad():
            f_s = source.f(rgb)
        terms = {
            "L_IM": w.im_t * losses.L_IM(logits),
            "L_self": w.self * losses.L_self(logits, labels[index]),
            "L_feat": w.feat * losses.L_feat_norm(f_s, f_t),
            "L_BN": w.bn_t * losses.L_d(seen, running),
        }
        total = torch.stack([*terms.values()]).sum()
        sgd.zero_grad()
        total.backward()
        sgd.step()
        _ = {name: value.item() for name, value in terms.items()}
        yield


@contextmanager
def _statistics(layers: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The mean and variance of what enters each layer, in its order, by hooks."""
    seen = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        seen.append((x.mean([0, 2, 3]), x.permute(1, 0, 2, 3).reshape(x.shape[1], -1).var(1, unbiased=False)))

    handles = [layer.register_forward_hook(look) for layer in layers]
    yield seen
    for handle in handles:
        handle.remove()


@torch.no_grad()
def label(source: Classifier, files: Dataset, batch_size: int, workers: int) -> Tensor:
    """The pseudo-labels of an epoch, int64 [N]: files read in order, features and predictions joined, SOCKET's one round."""
    source.eval()
    device = next(source.parameters()).device
    features, logits = [], []
    for x, _ in DataLoader(files, batch_size, num_workers=workers):
        f = source.f(x.to(device, non_blocking=True))
        features.append(f.float().cpu())
        logits.append(source.h(f).float().cpu())
    return pseudo_labels.assign(torch.cat(features), torch.cat(logits).softmax(1), rounds=1)
