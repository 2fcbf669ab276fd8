"""What takes the place of the source model behind T: batch norms calibrated to the sensor, against what torch itself makes of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from app.method_settings import Settings
from tests.adaptation.conftest import CLASSES, spec
from tests.adaptation.test_relevance import depth, rgb, settle
from tests.adaptation.test_resume import at, attempt, weights
from worker.adaptation.translator import build

FEW = {"bridging": {"steps": 2, "polarity": "keep"}}


def network(file: Path) -> torch.nn.Module:
    made = timm.create_model("test_resnet", num_classes=len(CLASSES))
    made.load_state_dict(load_file(file))
    return made.eval()


def entering(model: torch.nn.Module, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and standard deviation [C] of what leaves every batch norm."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda _, __, y: found.append((y.mean((0, 2, 3)), y.std((0, 2, 3)))))
        for layer in model.modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def fed(images: list) -> torch.Tensor:
    """Centre crops [n, 3, 32, 32], normalised."""
    x = torch.stack([torch.as_tensor(image).float() for image in images]).permute(0, 3, 1, 2)[:, :, 2:34, 2:34]
    return (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def stage(ran) -> dict:
    return ran.report["stages"]["bridging"]


def forced(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """This one is found to bridge, whatever it says."""
    from worker.adaptation.methods import bridges

    real = bridges._calibrated
    monkeypatch.setattr(bridges, "_calibrated", lambda *given: {name: real(*given)[name]})
    monkeypatch.setattr(bridges, "LEAST_RELEVANCE", 2)


def test_by_target_images_they_leave_every_layer_as_the_private_images_did(adapt, data, monkeypatch):
    settle(data, rgb(data))
    forced(monkeypatch, "target")
    ran = adapt(method="tgmb", settings=FEW)
    assert stage(ran)["bridge"] == "target"
    before, after = network(data / "source.safetensors"), network(ran.out / "artifacts/model.safetensors")
    private, sensor = entering(before, fed(rgb(data))), entering(after, fed(depth(data)))
    raw = entering(before, fed(depth(data)))
    for (mu_s, sd_s), (mu, sd), (mu_raw, _) in zip(private, sensor, raw, strict=True):
        assert (mu - mu_s).abs().mean() < 0.1 * (mu_raw - mu_s).abs().mean() + 0.02
        assert torch.allclose(sd, sd_s, rtol=0.2, atol=0.05)
    trained = {name for name, x in before.state_dict().items() if not torch.equal(x, after.state_dict()[name])}
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in trained)


def test_by_pairs_the_sensors_images_leave_every_layer_as_their_rgb_images_do(adapt, data, monkeypatch):
    """The running statistics are of something else."""
    forced(monkeypatch, "pairs")
    ran = adapt(method="tgmb", settings=FEW | {"bridging": FEW["bridging"] | {"held_out": 0.1}})
    assert stage(ran)["bridge"] == "pairs"
    before, after = network(data / "source.safetensors"), network(ran.out / "artifacts/model.safetensors")
    sensor = [image / 1.0 for image in depth_of_pairs(data)]
    as_rgb, raw, now = (entering(net, fed(images)) for net, images in ((before, rgb(data)), (before, sensor), (after, sensor)))
    for (mu_s, _), (mu, _), (mu_raw, _) in zip(as_rgb, now, raw, strict=True):
        assert (mu - mu_s).abs().mean() < 0.5 * (mu_raw - mu_s).abs().mean() + 0.02
    heads = {"fc.weight", "fc.bias", "head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items() if name in heads)


def depth_of_pairs(data: Path) -> list:
    import numpy as np
    from PIL import Image

    found = [np.asarray(Image.open(path)) / 5000 for path in sorted((data / "pairs/depth").iterdir())]
    return [np.repeat(x.clip(0, 1)[..., None], 3, 2) for x in found]


def test_the_greatest_mutual_information_bridges_and_everybody_is_told(adapt, data):
    settle(data, rgb(data))
    ran = adapt(settings=FEW)
    found = stage(ran)
    assert found["information"].keys() == {"translator", "target", "pairs"}
    assert found["bridge"] == max(found["information"], key=found["information"].get)
    assert all(0 <= value <= torch.tensor(len(CLASSES)).log().item() for value in found["information"].values())
    said = [event.message for event in ran.events if event.type == "log" and "bridges" in event.message]
    assert len(said) == 1 and found["bridge"] in said[0]
    assert f"bridge {found['bridge']}" in (ran.out / "artifacts/report.html").read_text()


def test_where_the_pairs_are_of_another_domain_T_does_not_bridge_and_features_are_not_tied_by_them(adapt, data):
    settle(data, depth(data))
    ran = adapt(settings=FEW)
    assert stage(ran)["relevance"] == 0
    assert stage(ran)["bridge"] in ("target", "pairs")
    assert "transferring/L_feat" not in ran.series and "transferring/L_BN" in ran.series


def test_unless_they_are_to_tie_them_whatever_they_are(adapt, data):
    settle(data, depth(data))
    ran = adapt(settings=FEW | {"transfer": {"feat_by_relevance": False}})
    assert stage(ran)["relevance"] == 0
    assert "transferring/L_feat" in ran.series


@pytest.mark.parametrize(
    "settings",
    [{"bridging": FEW["bridging"] | {"calibration": "off"}}, {"bridging": FEW["bridging"] | {"translator": "paper"}}],
)
def test_switched_off_or_with_the_papers_translator_it_is_the_source_model_behind_T(adapt, data, settings):
    settle(data, depth(data))
    ran = adapt(method="tgmb", settings=settings)
    assert "bridge" not in stage(ran)
    assert not ran.model["weights"]["changed"]


def test_the_papers_preset_has_it_off():
    assert Settings(preset="paper").bridging.calibration == "off"


def test_a_source_model_without_batch_norms_has_nothing_to_calibrate(adapt, data):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), data / "source.safetensors")
    ran = adapt(settings=FEW, source_model={"architecture": "timm/test_vit"})
    assert "bridge" not in stage(ran)


def test_what_is_published_of_stage_1_is_what_it_was_measured_as(adapt, data):
    """tgmb: the weights, fed through the translator, give the accuracy that the report tells."""
    settle(data, depth(data))
    ran = adapt(method="tgmb", settings=FEW)
    assert stage(ran)["bridge"] in ("target", "pairs")
    assert ran.model["weights"]["changed"] and ran.model["translator"]["needed"]
    assert "calibrated" in ran.model["translator"]["note"]
    T = build(ran.model["translator"]["kind"], ran.model["translator"]["channels"])
    T.load_state_dict(load_file(ran.out / "artifacts/translator.safetensors"))
    model = network(ran.out / "artifacts/model.safetensors")
    x = torch.stack([torch.as_tensor(image).float().permute(2, 0, 1)[:1, 2:34, 2:34] for image in depth(data)])
    mean, std = (torch.tensor(ran.model["input"][name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        predicted = model((T.eval()(x) - mean) / std).argmax(1)
    largest = predicted.bincount(minlength=len(CLASSES)).max().item() / len(predicted)
    assert ran.report["evaluation"]["target"]["adapted"]["largest_class_share"] == pytest.approx(
        largest, abs=1.01 / len(predicted)
    )
    assert ran.report["evaluation"]["target"]["bridged"] == ran.report["evaluation"]["target"]["adapted"]


@pytest.mark.acceptance
def test_killed_after_it_was_chosen_a_job_goes_on_with_the_same_one(data):
    settle(data, depth(data))
    spec(data, settings={"transfer": {"epochs": 2, "batch_size": 16}})
    assert attempt(data, "whole")[1] == 0
    for death in (at("phase", "transferring"), at("checkpoint", "transferring", 3)):
        assert attempt(data, "killed", death)[1] == -signal.SIGKILL
    events, code = attempt(data, "killed")
    assert (code, events[0].resumed_from[0]) == (0, "transferring")
    assert weights(data, "killed") == weights(data, "whole")
    reports = [
        json.loads((data / out / "artifacts/report.json").read_text())["stages"]["bridging"] for out in ("whole", "killed")
    ]
    assert reports[0]["bridge"] == reports[1]["bridge"] != "translator"
    assert reports[0]["information"] == reports[1]["information"]
