"""Several source models in one job: what they say together, what is published, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from app.errors import Problem
from app.spec import AdaptationSpec, InputSpec
from tests.adaptation.conftest import CLASSES, SIZE, spec
from tests.adaptation.test_resume import at, attempt, weights
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.source_model import build

SHUFFLED = ("bar", "disc", "square")
HALF = {"size": SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}


@pytest.fixture
def second(data: Path) -> dict:
    """Another architecture, which names the classes in another order and normalises otherwise."""
    torch.manual_seed(1)
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), data / "second.safetensors")
    return {"uri": "second.safetensors", "architecture": "timm/test_efficientnet", "classes": SHUFFLED, "input": HALF}


def published(ran) -> tuple:
    """The model as a user loads it, and model.json."""
    page: dict = {}
    lines = "\n".join(ran.model["load"]).replace('"model.safetensors"', repr(str(ran.out / "artifacts/model.safetensors")))
    exec(lines, page)
    return page["model"], ran.model


def plain(file: Path, name: str, mean: list[float], std: list[float], x: torch.Tensor) -> torch.Tensor:
    network = timm.create_model(name, num_classes=3)
    network.load_state_dict(load_file(file))
    with torch.no_grad():
        return network.eval()((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))


def test_logits_are_the_weighted_sum_and_features_count_as_far_as_they_move_them():
    torch.manual_seed(0)
    one, two = (build(f"timm/test_{name}", 3, InputSpec(size=SIZE)).eval() for name in ("resnet", "efficientnet"))
    model = Ensemble([one, two])
    with torch.no_grad():
        model.mixing.copy_(torch.tensor([0.3, 0.7]).log())
        x = torch.rand(4, 3, SIZE, SIZE)
        features, logits = model(x)
        (f_1, l_1), (f_2, l_2) = one(x), two(x)
    assert torch.allclose(logits, 0.3 * l_1 + 0.7 * l_2, atol=1e-6)
    norms = [one.h.weight.square().sum().sqrt(), two.h.weight.square().sum().sqrt()]
    assert torch.allclose(features, torch.cat([norms[0] * f_1, norms[1] * f_2], 1))
    assert model.width == features.shape[1] == one.h.in_features + two.h.in_features


def test_untrained_they_are_published_as_the_mean_of_both_with_the_classes_of_the_first(adapt, data, second):
    ran = adapt(method="source_only", further_source_models=[second])
    model, card = published(ran)
    x = torch.rand(5, 3, SIZE, SIZE)
    first = plain(data / "source.safetensors", "test_resnet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], x)
    other = plain(data / "second.safetensors", "test_efficientnet", HALF["mean"], HALF["std"], x)
    other = other[:, [SHUFFLED.index(name) for name in CLASSES]]
    with torch.no_grad():
        assert torch.allclose(model(x), (first + other) / 2, atol=1e-5)
    assert card["architecture"] == "timm/test_resnet + timm/test_efficientnet"
    assert [member["weight"] for member in card["members"]] == [0.5, 0.5]
    assert card["members"][1]["std"] == HALF["std"]
    assert card["input"]["mean"] == [0, 0, 0] and card["input"]["std"] == [1, 1, 1], "it normalises by itself"
    assert not any("Subtract" in step for step in card["sensor"]["steps"])


@pytest.mark.parametrize("method", ["shot", "socket", "tgmb_tgkt"])
def test_every_one_of_them_is_trained_and_the_weights_stay_alike(adapt, data, second, method):
    ran = adapt(method=method, further_source_models=[second])
    assert [member["weight"] for member in ran.model["members"]] == [0.5, 0.5]
    tensors = load_file(ran.out / "artifacts/model.safetensors")
    for m, file in enumerate(("source", "second")):
        before = load_file(data / f"{file}.safetensors")
        heads = {f"{ran.model['members'][m]['head']}.{part}" for part in ("weight", "bias")}
        assert {f"{m}.{name}" for name in before} == {name for name in tensors if name.startswith(f"{m}.")}
        moved = {name for name, value in before.items() if not torch.equal(value, tensors[f"{m}.{name}"])}
        assert moved - heads, file
        order = [0, 1, 2] if m == 0 else [SHUFFLED.index(name) for name in CLASSES]
        assert all(torch.equal(before[name][order], tensors[f"{m}.{name}"]) for name in heads), "h_t stays the source's"
    assert ran.report["evaluation"]["labelled"]["adapted"]["accuracy"] >= 0


def test_the_weights_can_be_learned_and_are_what_the_published_model_goes_by(adapt, second):
    ran = adapt(further_source_models=[second], settings={"transfer": {"mixing": "learned", "lr": 0.01, "warmup": 0}})
    mixed = [member["weight"] for member in ran.model["members"]]
    assert sum(mixed) == pytest.approx(1) and abs(mixed[0] - 0.5) > 0.01
    model, _ = published(ran)
    with torch.no_grad():
        logits = model(torch.rand(2, 3, SIZE, SIZE))
    assert logits.shape == (2, 3) and all(f"{weight!r}" in "".join(ran.model["load"]) for weight in mixed)


def test_a_job_of_several_that_is_killed_goes_on_to_the_same_weights(data, second):
    settings = {"transfer": {"mixing": "learned", "epochs": 2, "batch_size": 16}}
    spec(data, further_source_models=[second], settings=settings)
    for out, until in (("whole", None), ("parts", at("checkpoint", "transferring", 3)), ("parts", None)):
        events, _ = attempt(data, out, until)
    assert events[0].resumed_from[0] == "transferring"
    assert weights(data, "parts") == weights(data, "whole")
    cards = [json.loads((data / out / "artifacts/model.json").read_text()) for out in ("whole", "parts")]
    assert cards[0]["members"] == cards[1]["members"]


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"classes": ("disc", "square", "ring")}, "/further_source_models/0", "only one of the two has: bar, ring"),
        ({"input": {"size": 64}}, "/further_source_models/0", "this one has 64, the first 32"),
    ],
)
def test_what_cannot_be_adapted_together_is_refused(data, second, change, pointer, words):
    document = spec(data, further_source_models=[second | change])
    with pytest.raises(ValidationError) as raised:
        AdaptationSpec.model_validate_json(json.dumps(document))
    fault = raised.value.errors()[0]
    assert fault["ctx"]["pointer"] == pointer and words in fault["msg"]


def test_a_file_that_does_not_fit_is_named_by_its_place(adapt, data, second):
    save_file({"x": torch.zeros(1)}, data / "second.safetensors")
    with pytest.raises(Problem) as raised:
        adapt(further_source_models=[second])
    assert raised.value.code == "source_model_mismatch"
    assert raised.value.pointer == "/further_source_models/0/architecture"


def test_a_job_goes_on_with_the_same_models_alone(adapt, data, second):
    adapt(method="source_only", further_source_models=[second])
    with pytest.raises(Problem, match="another specification"):
        adapt(method="source_only")
    torch.manual_seed(2)
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), data / "second.safetensors")
    with pytest.raises(Problem, match="another source model"):
        adapt(method="source_only", further_source_models=[second])
