"""What takes the place of a trained T: batch norms calibrated to the sensor, by what leaves each layer of the published weights."""

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

FEW = {"bridging": {"steps": 2, "polarity": "keep", "calibration": "auto"}}
ALWAYS = {"bridging": FEW["bridging"] | {"calibration": "always"}}


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


def test_it_leaves_every_layer_as_the_private_images_did_and_trains_nothing(adapt, data):
    settle(data, rgb(data))
    ran = adapt(method="tgmb", settings=ALWAYS)
    before, after = network(data / "source.safetensors"), network(ran.out / "artifacts/model.safetensors")
    private, sensor = entering(before, fed(rgb(data))), entering(after, fed(depth(data)))
    raw = entering(before, fed(depth(data)))
    for (mu_s, sd_s), (mu, sd), (mu_raw, _) in zip(private, sensor, raw, strict=True):
        assert (mu - mu_s).abs().mean() < 0.1 * (mu_raw - mu_s).abs().mean() + 0.02
        assert torch.allclose(sd, sd_s, rtol=0.2, atol=0.05)
    changed = {name for name, x in before.state_dict().items() if not torch.equal(x, after.state_dict()[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert stage(ran)["calibrated"] and stage(ran)["steps"] == 0
    assert "bridging/L_BN" not in ran.series


def test_pairs_that_are_relevant_train_T(adapt, data):
    settle(data, rgb(data))
    ran = adapt(settings=FEW)
    assert stage(ran)["relevance"] > 0.25
    assert "calibrated" not in stage(ran) and stage(ran)["steps"] == 2


def test_where_the_pairs_are_of_another_domain_it_takes_the_place_of_T_and_no_features_are_tied_by_them(adapt, data):
    settle(data, depth(data))
    ran = adapt(settings=FEW)
    assert stage(ran)["relevance"] == 0
    assert stage(ran)["calibrated"]
    said = [event.message for event in ran.events if event.type == "log" and "calibrated" in event.message]
    assert len(said) == 1 and "relevance of the pairs 0.00" in said[0]
    assert "transferring/L_feat" not in ran.series and "transferring/L_BN" in ran.series


def test_unless_they_are_to_tie_them_whatever_they_are(adapt, data):
    settle(data, depth(data))
    ran = adapt(settings=FEW | {"transfer": {"feat_by_relevance": False}})
    assert stage(ran)["relevance"] == 0
    assert "transferring/L_feat" in ran.series


def test_switched_off_it_is_the_source_model_behind_T(adapt, data):
    settle(data, depth(data))
    ran = adapt(method="tgmb", settings={"bridging": FEW["bridging"] | {"calibration": "never"}})
    assert "calibrated" not in stage(ran) and stage(ran)["steps"] == 2
    assert not ran.model["weights"]["changed"]


def test_the_papers_translator_as_it_was_before_training_is_no_image(adapt, data):
    """So it is trained, whatever the pairs are."""
    settle(data, depth(data))
    ran = adapt(method="tgmb", settings={"bridging": ALWAYS["bridging"] | {"translator": "paper"}})
    assert "calibrated" not in stage(ran) and stage(ran)["steps"] == 2


def test_the_papers_preset_has_it_off():
    assert Settings(preset="paper").bridging.calibration == "never"


def test_what_goes_by_the_statistics_of_each_batch_is_not_calibrated_and_T_stays(adapt, data):
    settle(data, depth(data))
    ran = adapt(method="socket_tgmb", settings=FEW)
    assert "calibrated" not in stage(ran) and stage(ran)["steps"] == 0
    T = load_file(ran.out / "artifacts/translator.safetensors")
    assert not T["leave.weight"].any() and not T["leave.bias"].any()


def test_a_source_model_without_batch_norms_has_nothing_to_calibrate(adapt, data):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), data / "source.safetensors")
    ran = adapt(settings=ALWAYS, source_model={"architecture": "timm/test_vit"})
    assert "calibrated" not in stage(ran)


def test_what_is_published_of_stage_1_is_what_it_was_measured_as(adapt, data):
    """tgmb: the weights, fed through the translator, give the accuracy that the report tells."""
    settle(data, depth(data))
    ran = adapt(method="tgmb", settings=FEW)
    assert stage(ran)["calibrated"]
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
def test_killed_after_it_a_job_goes_on_with_the_same_teacher(data):
    settle(data, depth(data))
    spec(data, settings=FEW | {"transfer": {"epochs": 2, "batch_size": 16}})
    assert attempt(data, "whole")[1] == 0
    for death in (at("phase", "transferring"), at("checkpoint", "transferring", 3)):
        assert attempt(data, "killed", death)[1] == -signal.SIGKILL
    events, code = attempt(data, "killed")
    assert (code, events[0].resumed_from[0]) == (0, "transferring")
    assert weights(data, "killed") == weights(data, "whole")
    reports = [
        json.loads((data / out / "artifacts/report.json").read_text())["stages"]["bridging"] for out in ("whole", "killed")
    ]
    assert reports[0]["calibrated"] and reports[0] == reports[1]
