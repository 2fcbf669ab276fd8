"""The source classifier: torchvision's ResNet-18, trained from scratch on labelled RGB, as any team would have done."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18

SIZE = 48
STORED = 55
"""Images are kept at SIZE / 0.875 and cropped to SIZE."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(folder: Path, classes: list[str], depth_m: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one folder a class: float [N, 3, STORED, STORED] in [0, 1], labels [N]. depth_m: the files are depth in
    millimetres, and this many metres become 1."""
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*.png")):
            raw = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32))
            rgb = raw.permute(2, 0, 1) / 255 if depth_m is None else (raw / (depth_m * 1000)).clamp(0, 1).expand(3, -1, -1)
            images.append(F.interpolate(rgb[None], (STORED, STORED), mode="bilinear", antialias=True)[0])
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Of the centre crops."""
    edge = (STORED - SIZE) // 2
    crops = normalise(images[..., edge : edge + SIZE, edge : edge + SIZE])
    predicted = torch.cat([model(part).argmax(1) for part in crops.split(100)])
    return (predicted == labels).double().mean().item()


def train(rgb: Path, classes: list[str], out: Path, *, epochs: int = 16, seed: int = 0) -> torch.nn.Module:
    """Label smoothing 0.1, random crops, flips and exposure; SGD with a warm-up and a cosine. Writes the state_dict."""
    torch.manual_seed(seed)
    images, labels = read(rgb, classes)
    model = resnet18(num_classes=len(classes))
    batch, steps = 32, epochs * (len(images) // 32)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(images))[: len(images) // batch * batch]
        for index in order.split(batch):
            x, y = torch.randint(0, STORED - SIZE + 1, (2,)).tolist()
            crops = images[index, :, y : y + SIZE, x : x + SIZE]
            crops = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, crops.flip(-1), crops)
            crops = crops * torch.empty(batch, 1, 1, 1).uniform_(0.6, 1.2)
            crops = torch.where(torch.rand(batch, 1, 1, 1) < 0.2, crops.mean(1, keepdim=True).expand(-1, 3, -1, -1), crops)
            loss = F.cross_entropy(model(normalise(crops.clamp(0, 1))), labels[index], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out)
    return model.eval()
