"""Resizing of readings with holes: antialiased, cut to shape, filled where nothing was measured."""

from __future__ import annotations

import numpy as np
from PIL import Image

from worker.adaptation.decoding import MAX_PIXELS, UnreadableError

BILINEAR = Image.Resampling.BILINEAR
SMALLEST_WEIGHT = 0.01
"""A resized pixel with less than this share of readings under it is filled from further away."""


def fit(channel: np.ndarray, height: int, width: int, stretch: bool) -> np.ndarray:
    """channel [H, W], uint8 or float32, to [height, width], antialiased (Pillow's bilinear, the filter of torchvision's
    Resize). stretch: each side by itself; else the image is resized until it covers the shape and the centre cut out,
    rounded as torchvision's Resize and CenterCrop do. Returns the dtype it was given. Raises UnreadableError
    for one so long and narrow that it would have more than MAX_PIXELS before it is cut."""
    h, w = channel.shape
    image = Image.fromarray(np.ascontiguousarray(channel))
    if stretch:
        return np.asarray(image if (h, w) == (height, width) else image.resize((width, height), BILINEAR))
    height_binds = height * w >= width * h
    resized = (max(width, int(height * w / h)), height) if height_binds else (width, max(height, int(width * h / w)))
    if resized[0] * resized[1] > MAX_PIXELS:
        raise UnreadableError(f"{w} x {h} pixels are too long and narrow to cover {width} x {height}")
    if resized != (w, h):
        image = image.resize(resized, BILINEAR)
    x, y = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return np.asarray(image)[y : y + height, x : x + width]


def fit_readings(channel: np.ndarray, valid: np.ndarray, height: int, width: int, stretch: bool) -> np.ndarray:
    """Like `fit` for a float32 channel of which only the `valid` (bool [H, W]) pixels were measured: normalised
    convolution, resize(value * valid) / resize(valid), then what is still empty is filled by push-pull. An image
    without any reading becomes 0."""
    share = fit(valid.astype(np.float32), height, width, stretch)
    value = fit(np.where(valid, channel, np.float32(0)), height, width, stretch)
    known = share >= SMALLEST_WEIGHT
    return push_pull(np.where(known, value / np.maximum(share, SMALLEST_WEIGHT), np.float32(0)), known)


def push_pull(value: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill the unknown pixels of value [H, W] from ever coarser averages of the known ones (Gortler et al., The
    Lumigraph, SIGGRAPH 1996, section 3.4). Known pixels stay as they are; if none is known, value is returned."""
    if known.all() or not known.any():
        return value
    h, w = value.shape
    padded = ((0, h % 2), (0, w % 2))
    weights = np.pad(known.astype(np.float32), padded)
    sums = _halve(np.pad(np.where(known, value, np.float32(0)), padded))
    counts = _halve(weights)
    coarse = push_pull(sums / np.maximum(counts, 1), counts > 0)
    finer = np.asarray(Image.fromarray(coarse).resize((w + w % 2, h + h % 2), BILINEAR))[:h, :w]
    return np.where(known, value, finer)


def _halve(array: np.ndarray) -> np.ndarray:
    """Sums of 2 x 2 blocks."""
    return array[::2, ::2] + array[1::2, ::2] + array[::2, 1::2] + array[1::2, 1::2]
