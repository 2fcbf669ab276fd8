"""The source classifier's training: the same each time, and of colour images alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from app.spec import SourceModelDescription
from demo import source


@pytest.fixture(autouse=True)
def one_thread():
    """Batches this small are no faster on two, and far slower where another process holds one of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_description_is_one_that_the_service_takes():
    described = SourceModelDescription.model_validate(source.description(("a", "b")))
    assert round(described.input.size / described.input.crop_ratio) == source.RESIZED


def test_images_are_read_by_class(tmp_path):
    for label, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.full((64, 64, 3), 200 * label, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    images, labels = source.read_labelled(tmp_path, ("dark", "light"))
    assert images.shape == (4, 3, source.RESIZED, source.RESIZED)
    assert labels.tolist() == [0, 0, 1, 1]
    assert images.amax(dim=(1, 2, 3)).tolist() == [0, 0, 200, 200]


def test_augmentation_keeps_the_range_and_follows_the_generator():
    images = torch.randint(0, 256, (4, 3, source.RESIZED, source.RESIZED), dtype=torch.uint8, generator=torch.manual_seed(0))
    first, again = (source.augment(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (4, 3, source.INPUT, source.INPUT)
    assert first.min() >= 0 and first.max() <= 1
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, source.augment(images, torch.Generator().manual_seed(4)))


def bright_and_dark() -> tuple[torch.Tensor, torch.Tensor]:
    """48 noisy images of two classes that differ in brightness."""
    labels = torch.arange(48) % 2
    noise = torch.randint(0, 80, (48, 3, source.RESIZED, source.RESIZED), generator=torch.Generator().manual_seed(0))
    return (noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def test_training_learns():
    images, labels = bright_and_dark()
    steps = []
    model = source.train(images, labels, 2, 1, source.Training(epochs=7, batch_size=8), advance=lambda: steps.append(1))
    assert len(steps) == 7 * 6
    assert source.accuracy(model, images, labels) > 0.9


def test_the_same_seed_gives_the_same_weights():
    images, labels = bright_and_dark()
    first, again, other = (
        source.train(images, labels, 2, seed, source.Training(epochs=1, batch_size=24)).state_dict() for seed in (1, 1, 2)
    )
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, again[name], rtol=0, atol=0, msg=name)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
