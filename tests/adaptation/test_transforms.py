"""Crops: what is cut where, and that the two images of a pair are always cut alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.adaptation import transforms
from worker.adaptation.transforms import Crops, apply, centre_crops, pair_crops, random_crops


def coordinates(n: int, height: int, width: int) -> torch.Tensor:
    """[n, 2, H, W]: every pixel holds its own centre, (x + 0.5, y + 0.5)."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y]).expand(n, 2, height, width).contiguous()


def test_a_window_at_an_integer_offset_is_an_exact_copy():
    images = torch.rand(6, 3, 37, 41, generator=torch.Generator().manual_seed(1))
    crops = random_crops(np.random.default_rng(0), 6, 37, 41, 32)
    out = apply(images, crops, 32)
    for image, (x0, y0, x1, y1), flip, crop in zip(images, crops.boxes.astype(int), crops.flips, out, strict=True):
        expected = image[:, y0:y1, x0:x1]
        assert torch.equal(crop, expected.flip(-1) if flip else expected)
    assert crops.flips.any() and not crops.flips.all()


def test_on_a_gpu_a_window_at_an_integer_offset_is_an_exact_copy_too():
    """There RoIAlign does it, for all images at once; up to the last row and column."""
    images = torch.rand(4, 2, 20, 30)
    crops = Crops(
        np.float32([[0, 0, 16, 16], [14, 4, 30, 20], [3, 1, 19, 17], [14, 4, 30, 20]]), np.array([False, True, True, False])
    )
    assert torch.equal(transforms._resampled(images, crops, 16), transforms._copied(images, crops, 16))


def test_the_same_step_gives_the_same_crops_and_another_step_gives_others():
    first, again, other = (random_crops(np.random.default_rng([7, 1, step]), 16, 256, 340, 224, 1.5) for step in (3, 3, 4))
    assert np.array_equal(first.boxes, again.boxes) and np.array_equal(first.flips, again.flips)
    assert not np.array_equal(first.boxes, other.boxes)


def test_every_offset_can_come_up_and_none_leaves_the_image():
    boxes = random_crops(np.random.default_rng(0), 3000, 12, 14, 10).boxes
    assert set(boxes[:, 0]) == {0, 1, 2, 3, 4}
    assert set(boxes[:, 1]) == {0, 1, 2}
    assert (boxes[:, 2] - boxes[:, 0] == 10).all() and (boxes[:, 3] - boxes[:, 1] == 10).all()


def test_larger_scenes_are_cut_between_the_targets_scale_and_their_whole():
    boxes = random_crops(np.random.default_rng(0), 4000, 377, 566, 96, 3.4).boxes
    side = boxes[:, 2] - boxes[:, 0]
    assert np.allclose(side, boxes[:, 3] - boxes[:, 1], atol=1e-3)
    assert 96 <= side.min() < 98 and 320 < side.max() <= 96 * 3.4 + 1e-3
    assert abs(np.median(side) - 96 * 3.4**0.5) < 8  # log-uniform: the median is the geometric mean
    assert boxes[:, :2].min() >= 0 and boxes[:, 2].max() <= 566 + 1e-3 and boxes[:, 3].max() <= 377 + 1e-3


def test_a_fractional_window_samples_where_it_says():
    crops = Crops(np.float32([[3.25, 2.5, 23.25, 22.5], [1, 1, 41, 41]]), np.array([False, True]))
    out = apply(coordinates(2, 48, 48), crops, 10)
    centres = (torch.arange(10) + 0.5) / 10
    assert torch.allclose(out[0, 0], (3.25 + 20 * centres).expand(10, 10), atol=1e-3)
    assert torch.allclose(out[0, 1], (2.5 + 20 * centres)[:, None].expand(10, 10), atol=1e-3)
    assert torch.allclose(out[1, 0], (1 + 40 * centres.flip(0)).expand(10, 10), atol=1e-3)


def test_shrinking_is_antialiased():
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::4] = 1  # one sample in the middle of an output pixel would miss them
    out = apply(stripes, Crops(np.float32([[0, 0, 64, 64]]), np.array([False])), 16)
    assert torch.allclose(out[..., 1:-1], torch.full((1, 1, 16, 14), 0.25), atol=0.02)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_pixel_of_a_pair_lands_at_the_same_place_in_both_images(scale):
    height, width, size = round(40 * scale), round(55 * scale), 32
    where = coordinates(8, height, width)
    source = torch.cat([where, torch.zeros(8, 1, height, width)], dim=1)
    target = where[:, :1] * 2 + where[:, 1:] * 3
    crops = random_crops(np.random.default_rng(5), 8, height, width, size, scale)
    s, t = pair_crops((source, target), crops, size)
    some_s, some_t = pair_crops((source[2:5], target[2:5]), crops[2:5], size)
    assert torch.equal(some_s, s[2:5]) and torch.equal(some_t, t[2:5])
    assert s.shape == (8, 3, size, size) and t.shape == (8, 1, size, size)
    assert torch.allclose(t[:, 0], s[:, 0] * 2 + s[:, 1] * 3, atol=1e-3)
    slope = s[:, 0, 0, 1] - s[:, 0, 0, 0]
    assert (slope > 0).any() and (slope < 0).any()  # flipped ones are among them


def test_centre_crops_are_those_of_torchvision():
    from torchvision.transforms.v2.functional import center_crop

    images = torch.rand(2, 3, 33, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply(images, centre_crops(2, 33, 50, 24), 24), center_crop(images, [24, 24]))


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        random_crops(np.random.default_rng(0), 2, 20, 40, 32)
    with pytest.raises(ValueError, match="3 crops for 2 images"):
        apply(torch.zeros(2, 3, 40, 40), centre_crops(3, 40, 40, 32), 32)
    with pytest.raises(ValueError, match="pairs must match"):
        pair_crops((torch.zeros(2, 3, 40, 40), torch.zeros(2, 1, 40, 41)), centre_crops(2, 40, 40, 32), 32)
