"""Batches of images: what is stored becomes [0, 1], on the device that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.adaptation.image_sets import Images, Pairs
from worker.adaptation.scaling import Range
from worker.adaptation.transforms import pair_crops, random_crops

INDEX = np.array([4, 0, 4, 2])


def images(dtype: type, low: float, high: float, channels: int = 1) -> Images:
    largest = np.iinfo(dtype).max
    array = np.random.default_rng(0).integers(0, largest, (5, channels, 20, 23), dtype=dtype, endpoint=True)
    return Images(array, list("abcde"), Range(8 * array.itemsize, 1.0, low, high, ""), 20.0)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(np.uint8, 0, 255), (np.uint8, 12.37, 201.9), (np.uint16, 431.7, 5000), (np.uint16, 0, 65535)]
)
def test_what_is_stored_is_scaled_in_single_precision_to_the_bit(dtype, low, high):
    made = images(dtype, low, high)
    scaled = (made.array[INDEX].astype(np.float32) - np.float32(low)) / np.float32(high - low)
    assert np.array_equal(made.batch(INDEX).numpy(), scaled.clip(0, 1))


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_batches_are_made_and_cropped_on_the_device(scale):
    """The meta device has no numbers, but refuses whatever comes of another device, as CUDA does."""
    meta = torch.device("meta")
    pairs = Pairs(images(np.uint8, 0, 255, 3), images(np.uint16, 0, 5000), scale)
    crops = random_crops(np.random.default_rng(1), len(INDEX), 20, 23, 16, scale)
    source, target = pair_crops(pairs.batch(INDEX, meta), crops, 16)
    assert (source.device, source.shape) == (meta, (4, 3, 16, 16))
    assert (target.device, target.shape) == (meta, (4, 1, 16, 16))
