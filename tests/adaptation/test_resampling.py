"""Images on their way to their size: holes are filled, and the rest is resized and cut as torchvision does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from tests.adaptation.folders import data_spec, ramp, read, save
from worker.adaptation.resampling import fit_readings, push_pull

# Holes


def test_holes_are_filled_from_their_neighbours_and_their_share_is_told(tmp_path):
    plane = ramp(64, 64, 8000)
    holed = plane.copy()
    holed[20:40, 30:50] = 0
    holed[::3, ::3] = 0
    for i in range(8):
        save(tmp_path / f"whole/{i}.png", plane)
        save(tmp_path / f"holed/{i}.png", holed)
    whole, _ = read(tmp_path, data_spec(tmp_path / "whole"))
    holed_batch, events = read(tmp_path, data_spec(tmp_path / "holed"))
    assert (holed_batch - whole).abs().max() < 0.06  # a pixel that kept its 0 would be off by up to 0.8
    assert (holed_batch - whole).abs().mean() < 0.005
    assert events.of("data")[0].no_reading_share == pytest.approx((holed == 0).mean())


def test_zero_is_a_reading_of_infrared_unless_said_otherwise(tmp_path):
    holed = np.full((32, 32), 200, np.uint8)
    holed[8:24, 8:24] = 0
    for i in range(8):
        save(tmp_path / f"data/{i}.png", holed)
    batch, events = read(tmp_path, data_spec(tmp_path / "data", "infrared"))
    assert batch[0, 0, 16, 16] == 0 and events.of("data")[0].no_reading_share == 0
    batch, events = read(tmp_path, data_spec(tmp_path / "data", "infrared", {"no_reading": 0}))
    assert batch[0, 0, 16, 16] == pytest.approx(200 / 255) and events.of("data")[0].no_reading_share == 0.25


def test_infinite_and_missing_floats_are_holes(tmp_path):
    array = np.full((32, 32), 5, np.float32)
    array[4:8, 4:8], array[20:24] = np.nan, np.inf
    for i in range(8):
        save(tmp_path / f"data/{i}.tif", array)
    batch, _ = read(tmp_path, data_spec(tmp_path / "data"))
    assert torch.allclose(batch, torch.full_like(batch, 0.5), atol=1e-3)


def test_push_pull_keeps_what_is_known_and_fills_a_constant_with_itself():
    rng = np.random.default_rng(0)
    value = rng.random((37, 53)).astype(np.float32)
    known = rng.random((37, 53)) < 0.02
    filled = push_pull(value * known, known)
    assert np.array_equal(filled[known], value[known])
    assert filled[~known].min() >= value[known].min() and filled[~known].max() <= value[known].max()
    constant = push_pull(np.where(known, np.float32(3), np.float32(0)), known)
    assert np.allclose(constant, 3, atol=1e-5)
    nothing = fit_readings(np.zeros((9, 9), np.float32), np.zeros((9, 9), bool), 4, 4, False)
    assert (nothing == 0).all()


# Sizes


@pytest.mark.parametrize(("height", "width"), [(48, 64), (200, 90), (20, 20), (33, 47)])
def test_an_image_is_resized_and_cut_as_torchvision_does_it(height, width, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(1, 255, (height, width)).astype(np.uint8) for _ in range(8)]
    for i, array in enumerate(arrays):
        save(tmp_path / f"data/{i}.png", array)
    batch, _ = read(tmp_path, data_spec(tmp_path / "data"))
    for out, array in zip(batch, arrays, strict=True):
        image = functional.center_crop(functional.resize(Image.fromarray(array), [32]), [32, 32])
        assert np.array_equal((out[0] * 255).round().numpy(), np.asarray(image, dtype=np.float32))


def test_16_bit_and_8_bit_images_are_resized_alike(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        array = rng.integers(1, 255, (50, 70)).astype(np.uint8)
        save(tmp_path / f"eight/{i}.png", array)
        save(tmp_path / f"sixteen/{i}.png", array.astype(np.uint16) * 257)
    eight, _ = read(tmp_path, data_spec(tmp_path / "eight"))
    sixteen, _ = read(tmp_path, data_spec(tmp_path / "sixteen"))
    assert (eight - sixteen).abs().max() < 1.01 / 255
