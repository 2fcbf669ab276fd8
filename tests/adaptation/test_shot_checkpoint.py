"""Three-part checkpoints of SHOT and SOCKET: their logits are those of the three networks, in every way they are packed."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from app.errors import Problem
from app.spec import InputSpec, SourceModelFile
from app.weights_file import inspect
from worker.adaptation import batch_norm
from worker.adaptation.source_model import Classifier, build, load, weights

K, WIDTH, SIZE = 4, 24, 32
CLASSES = ("box", "mug", "pan", "jar")
QUICKSTART = Path(__file__).parents[2] / "docs/quickstart.md"
Parts = dict[str, dict[str, Tensor]]


def described(architecture: str = "shot/resnet18", classes: tuple[str, ...] = CLASSES) -> SourceModelFile:
    return SourceModelFile(architecture=architecture, classes=classes, input=InputSpec(size=SIZE), uri="file:///model")


@functools.cache
def resnet(name: str) -> nn.Module:
    """netF, by torchvision: no tensor at its initial value. Made once, and only read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None)
        network.fc = nn.Identity()
        for value in network.state_dict().values():
            if value.ndim == 1:
                value += 0.2 * torch.rand(value.shape)
    return network.eval().requires_grad_(False)


def checkpoint(name: str = "resnet18", width: int = WIDTH, classes: int = K) -> Parts:
    """What source_F.pt, source_B.pt and source_C.pt hold, type `bn` and `wn`."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int, low: float = -1, high: float = 1) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    netF = dict(resnet(name).state_dict())
    features = 2048 if name == "resnet50" else 512
    netB = {
        "bn.weight": uniform(width, low=0.5, high=2),
        "bn.bias": uniform(width),
        "bn.running_mean": uniform(width),
        "bn.running_var": uniform(width, low=0.3, high=3),
        "bn.num_batches_tracked": torch.tensor(70),
        "bottleneck.weight": uniform(width, features, low=-0.2, high=0.2),
        "bottleneck.bias": uniform(width),
    }
    netC = {
        "fc.bias": uniform(classes),
        "fc.weight_g": uniform(classes, 1, low=0.5, high=3),
        "fc.weight_v": uniform(classes, width),
    }
    return {"netF": netF, "netB": netB, "netC": netC}


def expected(parts: Parts, x: Tensor, name: str = "resnet18", normalised: bool = True) -> tuple[Tensor, Tensor]:
    """Features and logits of the three parts in eval mode, by torch's functions and numpy. x: RGB in [0, 1]."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (InputSpec().mean, InputSpec().std))
    B, C = parts["netB"], parts["netC"]
    features = F.linear(resnet(name)((x - mean) / std), B["bottleneck.weight"], B["bottleneck.bias"])
    if normalised:
        features = F.batch_norm(features, B["bn.running_mean"], B["bn.running_var"], B["bn.weight"], B["bn.bias"])
    if "fc.weight" in C:
        w = C["fc.weight"].numpy()
    else:
        v = C["fc.weight_v"].numpy()
        w = C["fc.weight_g"].numpy() * v / np.sqrt((v**2).sum(1, keepdims=True))
    return features, F.linear(features, torch.from_numpy(w), C["fc.bias"])


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def flat(parts: Parts, prefix: str = "") -> dict[str, Tensor]:
    return {f"{part}.{prefix}{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def write(parts: Parts, path: Path) -> Path:
    save_file(flat(parts), path)
    return path


def same(classifier: Classifier, parts: Parts, tolerance: float = 1e-4, **how: Any) -> None:
    with torch.no_grad():
        features, logits = classifier(images())
    right_features, right_logits = expected(parts, images(), **how)
    assert right_logits.std() > 0.1, "the logits tell the images apart"
    assert torch.allclose(features, right_features, atol=tolerance)
    assert torch.allclose(logits, right_logits, atol=tolerance)


def refused(path: Path, source_model: SourceModelFile | None = None) -> Problem:
    with pytest.raises(Problem) as caught:
        load(source_model or described(), path)
    return caught.value


def by_letters(parts: Parts, prefix: str = "") -> dict[str, dict[str, Tensor]]:
    return {part[-1]: {prefix + name: value for name, value in tensors.items()} for part, tensors in parts.items()}


@pytest.mark.parametrize(
    "pack",
    [
        write,
        lambda parts, path: torch.save(flat(parts), path),
        lambda parts, path: torch.save(parts, path),
        lambda parts, path: torch.save(by_letters(parts), path),
        lambda parts, path: torch.save({"epoch": 3, "model": by_letters(parts, "module.")}, path),
        lambda parts, path: save_file(flat(parts, "module."), path),
        lambda parts, path: save_file({f"module.{name}": value for name, value in flat(parts).items()}, path),
        lambda parts, path: save_file(flat(parts | {"netF": {f"module.{n}": v for n, v in parts["netF"].items()}}), path),
    ],
    ids=["safetensors", "torch", "three dicts", "F, B, C", "wrapped, DataParallel", "DataParallel", "all", "one"],
)  # fmt: skip
def test_logits_are_those_of_the_three_parts_however_they_are_packed(pack, tmp_path):
    parts = checkpoint()
    pack(parts, tmp_path / "model")
    assert inspect(tmp_path / "model") in ("safetensors", "torch"), "the upload takes it too"
    same(load(described(), tmp_path / "model"), parts)


def test_a_file_whose_header_is_as_long_as_a_pickle_begins_is_read(tmp_path):
    """One in 32 safetensors files has a header of n * 256 + 128 bytes: it begins with 0x80, as pickles do."""
    parts, path = checkpoint(), tmp_path / "model"
    for pad in range(0, 256, 8):
        save_file(flat(parts), path, metadata={"note": "x" * pad})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert inspect(path) == "safetensors"
    same(load(described(), path), parts)


def test_the_page_packs_the_three_files_that_are_left(tmp_path, monkeypatch):
    parts = checkpoint()
    for part, tensors in parts.items():
        torch.save(tensors, tmp_path / f"source_{part[-1]}.pt")
    fences = re.findall(r"^```python\n(.*?)^```$", QUICKSTART.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (fence for fence in fences if "source_{part}.pt" in fence)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    same(load(described(), tmp_path / "rgb.safetensors"), parts)


def test_the_deep_resnet_with_the_bottleneck_that_shot_gives_it(tmp_path):
    parts = checkpoint("resnet50", width=256)
    classifier = load(described("shot/resnet50"), write(parts, tmp_path / "model"))
    assert classifier.h.weight.shape == (K, 256)
    assert len(batch_norm.layers(classifier)) == 54, "53 of the ResNet and the bottleneck's"
    same(classifier, parts, name="resnet50", tolerance=1e-3)


def test_the_weight_norm_of_todays_torch_is_read(tmp_path):
    parts = checkpoint()
    fc = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, K))
    fc.load_state_dict(
        {
            "bias": parts["netC"]["fc.bias"],
            "parametrizations.weight.original0": parts["netC"]["fc.weight_g"],
            "parametrizations.weight.original1": parts["netC"]["fc.weight_v"],
        }
    )
    saved = parts | {"netC": {f"fc.{name}": value for name, value in fc.state_dict().items()}}
    assert "fc.parametrizations.weight.original0" in saved["netC"]
    classifier = load(described(), write(saved, tmp_path / "model"))
    same(classifier, parts)
    assert torch.allclose(classifier.h.weight, fc.weight, atol=1e-6)


def test_a_classifier_without_weight_norm_is_read(tmp_path):
    parts = checkpoint()
    parts["netC"] = {"fc.weight": parts["netC"]["fc.weight_v"], "fc.bias": parts["netC"]["fc.bias"]}
    same(load(described(), write(parts, tmp_path / "model")), parts)


@pytest.mark.parametrize("kept", [True, False], ids=["kept but never run", "not there"])
def test_a_bottleneck_without_batch_norm_has_none(kept, tmp_path):
    """SHOT's type `ori` makes a batch norm, saves it, and does not run it: training it would change the network."""
    parts = checkpoint()
    fresh = {f"bn.{name}": value for name, value in nn.BatchNorm1d(WIDTH).state_dict().items()}
    parts["netB"] = {name: value for name, value in parts["netB"].items() if not name.startswith("bn.")} | (fresh if kept else {})
    classifier = load(described(), write(parts, tmp_path / "model"))
    same(classifier, parts, normalised=False)
    assert len(classifier.bottleneck()) == 2
    assert not [name for name in weights(classifier) if name.startswith("netB.bn")]


def test_checkpoints_from_before_batch_norms_counted_are_read(tmp_path):
    parts = checkpoint()
    older = {
        part: {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
        for part, tensors in parts.items()
    }
    same(load(described(), write(older, tmp_path / "model")), parts)


def test_half_precision_is_read_as_fp32(tmp_path):
    parts = checkpoint()
    halves = {
        part: {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
        for part, tensors in parts.items()
    }
    classifier = load(described(), write(halves, tmp_path / "model"))
    assert {value.dtype for value in classifier.parameters()} == {torch.float32}
    same(classifier, parts, tolerance=0.05)


def test_what_is_published_is_plain_and_loads_again(tmp_path):
    parts = checkpoint()
    classifier = load(described(), write(parts, tmp_path / "model"))
    out = weights(classifier)
    plain = {name for name in flat(parts) if not name.startswith("netC.fc.weight_")} | {"netC.fc.weight"}
    assert out.keys() == plain
    assert torch.equal(out["netF.layer4.1.bn2.running_var"], parts["netF"]["layer4.1.bn2.running_var"])
    save_file(out, tmp_path / "again")
    same(load(described(), tmp_path / "again"), parts)


def test_the_bottleneck_is_what_trains_at_the_higher_rate(tmp_path):
    classifier = load(described(), write(checkpoint(), tmp_path / "model"))
    named = {parameter: name for name, parameter in classifier.f.named_parameters()}
    assert {named[parameter] for parameter in classifier.bottleneck()} == {
        "netB.bottleneck.weight", "netB.bottleneck.bias", "netB.bn.weight", "netB.bn.bias",
    }  # fmt: skip
    assert build("torchvision/resnet18", K, InputSpec(size=SIZE)).bottleneck() == []


def test_fresh_weights_come_with_the_bottleneck_of_shot():
    classifier = build("shot/resnet18", K, InputSpec(size=SIZE))
    assert classifier.head == "netC.fc"
    assert classifier.h.in_features == 256
    assert len(classifier.bottleneck()) == 4
    assert classifier.training


def test_an_unknown_resnet_names_the_nearest():
    with pytest.raises(Problem) as caught:
        build("shot/resnet51", K, InputSpec(size=SIZE))
    assert (caught.value.code, caught.value.pointer) == ("unknown_architecture", "/source_model/architecture")
    assert "shot/resnet50" in caught.value.detail


@pytest.mark.parametrize("norm", [True, False], ids=["weight norm", "plain"])
def test_a_wrong_class_count_points_at_the_classes(norm, tmp_path):
    parts = checkpoint()
    if not norm:
        parts["netC"] = {"fc.weight": parts["netC"]["fc.weight_v"], "fc.bias": parts["netC"]["fc.bias"]}
    problem = refused(write(parts, tmp_path / "model"), described(classes=CLASSES[:3]))
    assert (problem.code, problem.pointer) == ("source_model_mismatch", "/source_model/classes")
    assert "4 outputs" in problem.detail
    assert {"name": "netC.fc.weight", "expected": [3, WIDTH], "found": [4, WIDTH]} in problem.context["ill_shaped"]


def test_what_is_missing_or_of_another_network_is_named(tmp_path):
    parts = checkpoint()
    problem = refused(write({"netF": parts["netF"]}, tmp_path / "model"))
    assert (problem.code, problem.pointer) == ("source_model_mismatch", "/source_model/architecture")
    assert problem.context == {
        "missing": ["netB.bottleneck.weight", "netB.bottleneck.bias", "netC.fc.weight", "netC.fc.bias"],
        "unexpected": [],
        "ill_shaped": [],
    }
    problem = refused(write(parts, tmp_path / "model"), described("shot/resnet34"))
    assert "netF.layer1.2.conv1.weight" in problem.context["missing"]
    save_file(parts["netF"], tmp_path / "model")
    problem = refused(tmp_path / "model")
    assert "conv1.weight" in problem.context["unexpected"]
    assert "netF.conv1.weight" in problem.context["missing"]
    problem = refused(write(parts, tmp_path / "model"), described("torchvision/resnet18"))
    assert "netF.conv1.weight" in problem.context["unexpected"]


def test_a_batch_norm_without_its_statistics_is_told(tmp_path):
    parts = checkpoint()
    del parts["netB"]["bn.running_var"]
    assert refused(write(parts, tmp_path / "model")).context["missing"] == ["netB.bn.running_var"]
    parts["netB"]["bn.running_var"] = torch.ones(WIDTH + 1)
    problem = refused(write(parts, tmp_path / "model"))
    assert [entry["name"] for entry in problem.context["ill_shaped"]] == ["netB.bn.running_var"]


@pytest.mark.parametrize("shape", [(K, WIDTH), (K,), (1, 1), (WIDTH, 1)])
def test_norms_that_are_not_one_a_class_are_ill_shaped(shape, tmp_path):
    parts = checkpoint()
    parts["netC"]["fc.weight_g"] = torch.ones(shape)
    problem = refused(write(parts, tmp_path / "model"))
    assert problem.code == "source_model_mismatch"
    assert problem.context["ill_shaped"] == [{"name": "netC.fc.weight_g", "expected": [K, 1], "found": list(shape)}]
    assert "netC.fc.weight_g" in problem.detail


def test_a_weight_that_is_there_twice_is_told(tmp_path):
    parts = checkpoint()
    parts["netC"]["fc.weight"] = torch.ones(K, WIDTH)
    problem = refused(write(parts, tmp_path / "model"))
    assert problem.context["unexpected"] == ["netC.fc.weight_g", "netC.fc.weight_v"]


def test_a_bottleneck_that_claims_to_be_huge_is_refused_by_its_shape(tmp_path):
    parts = checkpoint()
    parts["netB"]["bottleneck.weight"] = torch.zeros(1).expand(10**12, 512)
    torch.save(flat(parts), tmp_path / "model")
    problem = refused(tmp_path / "model")
    assert (problem.code, problem.pointer) == ("source_model_mismatch", "/source_model/architecture")
    assert "1000000000000 features" in problem.detail
    assert "8192" in problem.detail
    parts["netB"]["bottleneck.weight"] = torch.zeros(0, 512)
    assert refused(write(parts, tmp_path / "model")).code == "source_model_mismatch"


def test_other_parts_that_claim_to_be_huge_are_refused_by_their_shapes(tmp_path):
    for part, name in (("netC", "fc.weight_v"), ("netC", "fc.weight_g"), ("netB", "bn.running_mean")):
        parts = checkpoint()
        parts[part][name] = torch.zeros(1).expand(10**12)
        torch.save(flat(parts), tmp_path / "model")
        problem = refused(tmp_path / "model")
        assert problem.code == "source_model_mismatch"
        assert problem.context["ill_shaped"][0]["found"] == [10**12]


def test_a_row_of_zeros_has_no_direction(tmp_path):
    parts = checkpoint()
    parts["netC"]["fc.weight_v"][2] = 0
    problem = refused(write(parts, tmp_path / "model"))
    assert problem.code == "source_model_not_finite"
    assert problem.context["names"] == ["netC.fc.weight"]


@pytest.mark.parametrize("part", [{"epoch": 3}, {0: torch.zeros(3)}, {"a": {"b": torch.zeros(3)}}])
def test_three_dicts_that_hold_more_than_tensors_are_refused(part, tmp_path):
    torch.save(checkpoint() | {"netC": part}, tmp_path / "model")
    assert refused(tmp_path / "model").code == "source_model_format"


@pytest.mark.parametrize("normalised", [True, False])
def test_a_job_publishes_a_model_that_the_cards_lines_load(normalised, adapt, data):
    parts = checkpoint(classes=3)
    if not normalised:
        parts["netB"] = {name: value for name, value in parts["netB"].items() if not name.startswith("bn.")}
    write(parts, data / "shot.safetensors")
    ran = adapt(method="source_only", source_model={"uri": "shot.safetensors", "architecture": "shot/resnet18"})
    assert (ran.model["architecture"], ran.model["head"]) == ("shot/resnet18", "netC.fc")
    assert not any("worker" in line or "modalbridge" in line.lower() for line in ran.model["load"])
    page: dict[str, Any] = {}
    lines = "\n".join(ran.model["load"]).replace('"model.safetensors"', repr(str(ran.out / "artifacts/model.safetensors")))
    exec(lines, page)
    mean, std = (torch.tensor(ran.model["input"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = page["model"]((images() - mean) / std)
    assert torch.allclose(logits, expected(parts, images(), normalised=normalised)[1], atol=1e-4)
    assert len(load_file(ran.out / "artifacts/model.safetensors")) == len(page["model"].state_dict())
