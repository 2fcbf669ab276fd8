"""The source classifier: a torchvision ResNet-18 trained from scratch on labelled colour.

Its description is what a job's request says of it; its file holds the state_dict alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

INPUT = 48
"""Height and width of the classifier's input, in pixels."""
RESIZED = 55
"""Images are resized to this first, then cropped: 48 / 0.875."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Training:
    epochs: int = 8
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    """As SHOT and SOCKET train their source models."""


def description(classes: tuple[str, ...]) -> dict[str, object]:
    """`source_model` of a request for this classifier."""
    read = {"size": INPUT, "mean": MEAN, "std": STD, "resize": "crop", "crop_ratio": INPUT / RESIZED}
    return {"architecture": "torchvision/resnet18", "classes": classes, "input": read}


def network(classes: int) -> nn.Module:
    return torchvision.models.resnet18(weights=None, num_classes=classes)


def read_labelled(folder: Path, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """folder/<class>/*.png, colour -> images uint8 [n, 3, RESIZED, RESIZED] and labels int64 [n]."""
    found = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).glob("*.png"))]
    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)) for path, _ in found
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor([label for _, label in found])


def normalise(images: Tensor) -> Tensor:
    """[n, 3, H, W] in [0, 1] -> what the classifier is fed."""
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """uint8 [n, 3, RESIZED, RESIZED] -> [n, 3, INPUT, INPUT] in [0, 1]: random window, scale and flip, contrast
    and brightness."""
    n = len(images)
    scale = torch.empty(n).uniform_(0.8, 1.0, generator=rng)
    flip = torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0)
    shift = (2 * torch.rand(n, 2, generator=rng) - 1) * (1 - scale)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * flip, scale, shift
    grid = F.affine_grid(theta, [n, 3, INPUT, INPUT], align_corners=False)
    seen = F.grid_sample(images.float() / 255, grid, align_corners=False, padding_mode="reflection")
    contrast, brightness = torch.empty(2, n, 1, 1, 1).uniform_(-0.3, 0.3, generator=rng)
    middle = seen.mean(dim=(1, 2, 3), keepdim=True)
    return ((seen - middle) * (1 + contrast) + middle + 0.5 * brightness).clamp(0, 1)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images [n, 3, RESIZED, RESIZED] whose centre is classified rightly."""
    edge = (RESIZED - INPUT) // 2
    centre = images[:, :, edge : edge + INPUT, edge : edge + INPUT].float() / 255
    model.eval()
    guesses = torch.cat([model(normalise(part)).argmax(dim=1) for part in centre.split(128)])
    return (guesses == labels).float().mean().item()


def train(
    images: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    how: Training = Training(),
    advance: Callable[[], object] = lambda: None,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> nn.Module:
    """images uint8 [n, 3, RESIZED, RESIZED]. AdamW with one cycle of the learning rate; advance is called after each step.
    The same seed gives the same weights on the same machine's CPU. Returns it on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(classes).train().to(device, memory_format=torch.channels_last)
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    steps = how.epochs * (len(images) // how.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=how.lr, total_steps=steps, pct_start=0.2)
    for _ in range(how.epochs):
        order = torch.randperm(len(images), generator=rng)
        for batch in order[: len(order) // how.batch_size * how.batch_size].split(how.batch_size):
            seen = normalise(augment(images[batch], rng)).to(device, memory_format=torch.channels_last)
            loss = F.cross_entropy(model(seen), labels[batch].to(device), label_smoothing=how.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            advance()
    return model.cpu().eval()
