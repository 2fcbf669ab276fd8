"""What the adapted model is worth on held-out labelled depth, computed with torchvision, safetensors and Pillow alone, as
somebody would who has nothing of this service but the download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F


def load(weights: Path, card: dict[str, Any]) -> nn.Module:
    """The model of a `model.json` and its weights, in eval mode."""
    name = card["architecture"].removeprefix("torchvision/")
    model = torchvision.models.get_model(name, weights=None, num_classes=len(card["classes"]))
    model.load_state_dict(load_file(weights))
    return model.eval()


def read_depth(folder: Path, card: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """folder/<class>/*.png, 16-bit depth -> inputs [n, 3, size, size] by the steps that `model.json` lists, and labels [n]."""
    given, sensor = card["input"], card["sensor"]
    size, side = given["size"], round(given["size"] / given["crop_ratio"])
    edge = (side - size) // 2
    mean, std = (torch.tensor(given[name]).view(3, 1, 1) for name in ("mean", "std"))
    inputs, labels = [], []
    for label, name in enumerate(card["classes"]):
        for path in sorted((folder / name).glob("*.png")):
            raw = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32))
            x = ((filled(raw) - sensor["low"]) / (sensor["high"] - sensor["low"])).clamp(0, 1)
            x = F.interpolate(x[None, None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]
            x = x[:, edge : edge + size, edge : edge + size].expand(3, -1, -1)
            inputs.append((x - mean) / std)
            labels.append(label)
    return torch.stack(inputs), torch.tensor(labels)


def filled(depth: Tensor) -> Tensor:
    """Depth [H, W] whose pixels without a reading (0) take the mean of their neighbours, ring by ring from the edge in."""
    while (holes := depth == 0).any() and not holes.all():
        around = F.avg_pool2d(depth[None], 3, 1, 1)[0] / F.avg_pool2d((~holes).float()[None], 3, 1, 1)[0].clamp(min=1e-6)
        depth = torch.where(holes, around, depth)
    return depth


@torch.inference_mode()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    guesses = torch.cat([model.eval()(part).argmax(dim=1) for part in inputs.split(128)])
    return (guesses == labels).float().mean().item()
