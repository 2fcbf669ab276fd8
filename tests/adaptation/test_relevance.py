"""How far the pairs count. The source model's batch norms are made to know the pairs' RGB images, or raw depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.adaptation.test_methods import OFF
from worker.adaptation.methods import tgmb
from worker.adaptation.translator import build

ONE_STEP = {"bridging": {"steps": 1, "polarity": "keep"}, "weights": OFF | {"rec": 1, "bn_s": 1}}


def settle(data: Path, images: list[np.ndarray]) -> None:
    """Running statistics as training on these images [H, W, 3] in [0, 1] leaves them."""
    model = timm.create_model("test_resnet", num_classes=3)
    model.load_state_dict(load_file(data / "source.safetensors"))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    x = torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2)[:, :, 2:34, 2:34]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        model.train()((x - mean[:, None, None]) / std[:, None, None])
    save_file(model.state_dict(), data / "source.safetensors")


def rgb(data: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) / 255 for path in sorted((data / "pairs/rgb").iterdir())]


def depth(data: Path) -> list[np.ndarray]:
    found = [np.asarray(Image.open(path)) / 5000 for path in sorted((data / "target").iterdir())]
    return [np.repeat(x.clip(0, 1)[..., None], 3, 2) for x in found]


def test_pairs_of_the_domain_that_the_source_model_knows_count(adapt, data):
    settle(data, rgb(data))
    ran = adapt(method="tgmb", settings=ONE_STEP)
    assert ran.report["stages"]["bridging"]["relevance"] > 0.8
    assert "bridging/L_rec" in ran.series


def test_pairs_as_foreign_as_the_raw_target_images_do_not(adapt, data):
    settle(data, depth(data))
    ran = adapt(method="tgmb", settings=ONE_STEP | {"weights": {"im": 0.1}})
    assert ran.report["stages"]["bridging"]["relevance"] == 0
    assert "bridging/L_BN" in ran.series
    assert "bridging/L_rec" not in ran.series and "bridging/L_IM" not in ran.series


def test_unless_they_are_to_count_whatever_they_are(adapt, data):
    settle(data, depth(data))
    settings = ONE_STEP | {"bridging": ONE_STEP["bridging"] | {"by_relevance": False}}
    ran = adapt(method="tgmb", settings=settings)
    assert ran.report["stages"]["bridging"]["relevance"] == 1
    assert "bridging/L_rec" in ran.series


def test_a_source_model_without_batch_norms_has_no_say(adapt, data):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), data / "source.safetensors")
    ran = adapt(method="tgmb", settings=ONE_STEP, source_model={"architecture": "timm/test_vit"})
    assert ran.report["stages"]["bridging"]["relevance"] == 1


@pytest.mark.parametrize("kind", ["residual", "paper"])
def test_the_average_by_hand(kind):
    torch.manual_seed(0)
    averaged, T = build(kind, 1), build(kind, 1)
    T.train()(torch.rand(2, 1, 8, 8))
    before = [x.detach().clone() for x in averaged.parameters()]
    tgmb.average(averaged, T, 0.75)
    for mean, old, new in zip(averaged.parameters(), before, T.parameters(), strict=True):
        assert torch.allclose(mean, 0.75 * old + 0.25 * new, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(averaged.buffers(), T.buffers(), strict=True))
    tgmb.average(averaged, T, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(averaged.parameters(), T.parameters(), strict=True))
