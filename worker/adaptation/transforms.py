"""Crops and flips of whole batches, drawn from the generator of one step.

A crop is data (`Crops`), so that the two images of a pair, or one image at two times, can be given the very same one.
Coordinates are pixel edges: the first pixel spans 0 to 1, a window of `size` pixels at offset x0 ends at x0 + size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from worker.adaptation.device import moved


@dataclass(frozen=True)
class Crops:
    """boxes: float32 [n, 4], (x0, y0, x1, y1) in pixels, one square window an image. flips: bool [n], left to right,
    after the crop."""

    boxes: np.ndarray
    flips: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, some: slice) -> Crops:
        return Crops(self.boxes[some], self.flips[some])


def random_crops(rng: np.random.Generator, n: int, height: int, width: int, size: int, scale: float = 1.0) -> Crops:
    """n random square windows of images [height, width] whose shorter side is about scale * size / crop_ratio, and flips.

    scale 1: windows of exactly size x size at integer offsets, which is SHOT's and SOCKET's "resize 256, crop 224".
    scale r > 1: the images show r times as much as the target images do, so the side is log-uniform between `size`,
    which shows things as large as the target images do, and r * size, which shows as much of the scene as they do.
    Raises ValueError where the images are smaller than the window.
    """
    _check(height, width, size)
    if scale <= 1:
        side = np.full(n, float(size))
        x0 = rng.integers(0, width - size, n, endpoint=True).astype(np.float64)
        y0 = rng.integers(0, height - size, n, endpoint=True).astype(np.float64)
    else:
        largest = min(size * scale, height, width)
        side = np.minimum(np.exp(rng.uniform(np.log(size), np.log(largest), n)), largest)
        x0 = rng.uniform(0, 1, n) * (width - side)
        y0 = rng.uniform(0, 1, n) * (height - side)
    flips = rng.random(n) < 0.5
    return Crops(np.stack([x0, y0, x0 + side, y0 + side], axis=1).astype(np.float32), flips)


def centre_crops(n: int, height: int, width: int, size: int) -> Crops:
    """n times the size x size window in the middle, unflipped, rounded as torchvision's CenterCrop does.
    Raises ValueError where the images are smaller than the window."""
    _check(height, width, size)
    x0, y0 = round((width - size) / 2), round((height - size) / 2)
    return Crops(np.tile(np.float32([x0, y0, x0 + size, y0 + size]), (n, 1)), np.zeros(n, dtype=bool))


def apply(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Cut the windows out of float images [n, C, H, W] and resize them to [n, C, size, size], antialiased.

    Moves every channel alike. Windows of size x size at integer offsets come out as exact copies; all others are
    averaged bilinear samples. Raises ValueError unless there is one crop an image.
    """
    if len(crops) != len(images):
        raise ValueError(f"{len(crops)} crops for {len(images)} images")
    boxes = crops.boxes
    whole = (boxes == np.round(boxes)).all() and (boxes[:, 2:] - boxes[:, :2] == size).all()
    # A GPU does in three steps what would be two or three for each image.
    return _copied(images, crops, size) if whole and images.device.type == "cpu" else _resampled(images, crops, size)


def _copied(images: Tensor, crops: Crops, size: int) -> Tensor:
    corners = crops.boxes[:, :2].astype(int)
    windows = [image[:, y : y + size, x : x + size] for image, (x, y) in zip(images, corners, strict=True)]
    return torch.stack([w.flip(-1) if flip else w for w, flip in zip(windows, crops.flips, strict=True)])


def _resampled(images: Tensor, crops: Crops, size: int) -> Tensor:
    """RoIAlign, aligned, as many samples a bin as the window needs: of a window to be copied one, in the middle of the pixel."""
    rois = np.concatenate([np.arange(len(crops), dtype=np.float32)[:, None], crops.boxes], axis=1)
    rois = moved(torch.from_numpy(rois).to(images.dtype), images.device)
    out = roi_align(images, rois, output_size=size, spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    if not crops.flips.any():
        return out
    flips = moved(torch.from_numpy(crops.flips), images.device)[:, None, None, None]
    return torch.where(flips, out.flip(-1), out)


def pair_crops(pairs: tuple[Tensor, Tensor], crops: Crops, size: int) -> tuple[Tensor, Tensor]:
    """The same window and flip for both images of each pair: (source [n, 3, H, W], target [n, C, H, W]) becomes
    (source [n, 3, size, size], target [n, C, size, size])."""
    source, target = pairs
    if target.shape[0] != len(source) or target.shape[2:] != source.shape[2:]:
        raise ValueError(f"pairs must match in number and size: {tuple(source.shape)} and {tuple(target.shape)}")
    return apply(source, crops, size), apply(target, crops, size)


def _check(height: int, width: int, size: int) -> None:
    if min(height, width) < size:
        raise ValueError(f"a window of {size} pixels does not fit into images of {width} x {height}")
