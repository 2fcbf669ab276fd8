"""Source models: any classifier is split as f and h and gives its own logits; any bad file gives a clear problem."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from app.errors import Problem
from app.spec import InputSpec, SourceModelFile
from worker.adaptation import batch_norm
from worker.adaptation.source_model import build, load, weights

K = 4
CLASSES = ("box", "mug", "pan", "jar")
# architecture, input size, what the library itself builds, number of batch norms
ARCHITECTURES = [
    ("torchvision/resnet18", 32, lambda: torchvision.models.resnet18(num_classes=K), 20),
    ("torchvision/mobilenet_v3_small", 32, lambda: torchvision.models.mobilenet_v3_small(num_classes=K), 34),
    ("torchvision/efficientnet_b0", 32, lambda: torchvision.models.efficientnet_b0(num_classes=K), 49),
    ("torchvision/convnext_tiny", 32, lambda: torchvision.models.convnext_tiny(num_classes=K), 0),
    ("torchvision/vit_b_32", 64, lambda: torchvision.models.vit_b_32(num_classes=K, image_size=64), 0),
    ("torchvision/mnasnet0_5", 32, lambda: torchvision.models.mnasnet0_5(num_classes=K), 52),
    ("timm/resnet10t", 32, lambda: timm.create_model("resnet10t", num_classes=K), 14),
    ("timm/mobilenetv3_small_050", 32, lambda: timm.create_model("mobilenetv3_small_050", num_classes=K), 34),
    ("timm/efficientnet_b0", 32, lambda: timm.create_model("efficientnet_b0", num_classes=K), 49),
    ("timm/convnext_atto", 32, lambda: timm.create_model("convnext_atto", num_classes=K), 0),
    ("timm/vit_tiny_patch16_224", 64, lambda: timm.create_model("vit_tiny_patch16_224", num_classes=K, img_size=64), 0),
]


def described(architecture: str = "torchvision/resnet18", size: int = 32, classes: tuple[str, ...] = CLASSES) -> SourceModelFile:
    return SourceModelFile(architecture=architecture, classes=classes, input=InputSpec(size=size), uri="file:///model")


def lively(network: nn.Module) -> nn.Module:
    """No tensor at its initial value, and running statistics that matter, so that a wrong or lost one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.add_(noise * 0.1 if "running_var" in name or value.ndim < 2 else (noise - 0.5) * 0.02)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return lively(torchvision.models.resnet18(num_classes=K))


@pytest.fixture
def tensors(resnet: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in resnet.state_dict().items()}


def refused(path: Path, source_model: SourceModelFile | None = None) -> Problem:
    with pytest.raises(Problem) as caught:
        load(source_model or described(), path)
    return caught.value


@pytest.mark.parametrize(("architecture", "size", "plain", "norms"), ARCHITECTURES, ids=[a[0] for a in ARCHITECTURES])
def test_logits_are_those_of_the_plain_library_model_and_the_weights_go_back_into_it(architecture, size, plain, norms, tmp_path):
    network = lively(plain())
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    source_model = described(architecture, size)
    classifier = load(source_model, path)

    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (source_model.input.mean, source_model.input.std))
    with torch.no_grad():
        features, logits = classifier(x)
        assert torch.allclose(logits, network((x - mean) / std), atol=1e-4)
    assert features.shape == (2, classifier.h.in_features) and torch.equal(classifier.h(features), logits)
    assert logits.std() > 1e-4 and not classifier.training
    assert isinstance(network.get_submodule(classifier.head), nn.Linear)
    assert len(batch_norm.layers(classifier)) == norms

    out = weights(classifier)
    assert all(torch.equal(out[name], value) for name, value in network.state_dict().items())
    if "mnasnet" not in architecture:  # torchvision's MNASNet takes no dict without version metadata, not even its own
        plain().load_state_dict(out, strict=True)
    out[f"{classifier.head}.weight"].zero_()
    assert classifier.h.weight.abs().sum() > 0, "weights() must not share memory with the model"


def wrapped(tensors, path):
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in tensors.items()}}, path)


def lightning(tensors, path):
    torch.save(
        {"state_dict": {f"model._orig_mod.{name}": value for name, value in tensors.items()}, "optimizer_states": []}, path
    )


def compiled_lightning(tensors, path):
    torch.save({"state_dict": {f"_orig_mod.model.{name}": value for name, value in tensors.items()}}, path)


def averaged(tensors, path):
    torch.save({"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in tensors.items()}}, path)


def halves(tensors, path):
    save_file({name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}, path)


@pytest.mark.parametrize(
    "write",
    [
        lambda tensors, path: torch.save(tensors, path),
        lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
        lambda tensors, path: torch.save({"model": tensors}, path),
        lambda tensors, path: torch.save({name: nn.Parameter(v, requires_grad=False) for name, v in tensors.items()}, path),
        wrapped,
        lightning,
        compiled_lightning,
        averaged,
        halves,
    ],
    ids=[
        "zip",
        "legacy",
        "model key",
        "parameters",
        "checkpoint of DataParallel",
        "Lightning's",
        "compiled Lightning's",
        "AveragedModel's",
        "half precision",
    ],
)
def test_every_usual_way_of_saving_is_read_as_fp32(write, tensors, tmp_path):
    path = tmp_path / "model"
    write(tensors, path)
    out = weights(load(described(), path))
    assert out.keys() == tensors.keys()
    for name, value in tensors.items():
        assert out[name].dtype == value.dtype and torch.allclose(out[name], value, rtol=1e-3, atol=1e-4)


def test_loading_leaves_the_callers_random_numbers_alone(tensors, tmp_path):
    save_file(tensors, tmp_path / "model")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(described(), tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)


def test_a_model_saved_with_auxiliary_heads_is_read_without_them(tmp_path):
    network = torchvision.models.googlenet(num_classes=K, aux_logits=True, init_weights=False)
    save_file(network.state_dict(), tmp_path / "model")
    assert not [
        name for name in weights(load(described("torchvision/googlenet", 32), tmp_path / "model")) if name.startswith("aux")
    ]


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(Problem) as caught:
        build("torchvision/resnet19", K, InputSpec(size=32))
    assert (caught.value.code, caught.value.pointer) == ("unknown_architecture", "/source_model/architecture")
    assert "torchvision/resnet18" in caught.value.context["nearest"] and "torchvision/resnet18" in caught.value.detail
    with pytest.raises(Problem) as caught:
        build("timm/convnext_atto.no_such_tag", K, InputSpec(size=32))
    assert "timm/convnext_atto.d2_in1k" in caught.value.context["nearest"]


@pytest.mark.parametrize("detector", ["torchvision/fasterrcnn_resnet50_fpn", "torchvision/lraspp_mobilenet_v3_large"])
def test_a_network_that_is_no_classifier_is_unknown(detector):
    with pytest.raises(Problem) as caught:
        build(detector, K, InputSpec(size=32))
    assert caught.value.code == "unknown_architecture"


@pytest.mark.parametrize("architecture", ["torchvision/squeezenet1_0", "timm/deit_tiny_distilled_patch16_224"])
def test_logits_that_no_last_linear_layer_makes_are_unsupported(architecture):
    with pytest.raises(Problem) as caught:
        build(architecture, K, InputSpec(size=64))
    assert (caught.value.code, caught.value.pointer) == ("unsupported_architecture", "/source_model/architecture")


def test_too_small_an_input_is_told_before_training():
    with pytest.raises(Problem) as caught:
        build("torchvision/alexnet", K, InputSpec(size=32))
    assert (caught.value.code, caught.value.pointer) == ("input_too_small", "/source_model/input/size")
    assert "32 x 32" in caught.value.detail and "224 x 224" in caught.value.detail


def test_a_wrong_class_count_points_at_the_classes(tensors, tmp_path):
    save_file(tensors, tmp_path / "model")
    problem = refused(tmp_path / "model", described(classes=("box", "mug", "pan")))
    assert (problem.code, problem.pointer) == ("source_model_mismatch", "/source_model/classes")
    assert "4 outputs" in problem.detail and "3 classes" in problem.detail
    assert {"name": "fc.weight", "expected": [3, 512], "found": [4, 512]} in problem.context["ill_shaped"]


def test_another_architectures_weights_name_what_does_not_fit(tensors, tmp_path):
    save_file(tensors, tmp_path / "model")
    problem = refused(tmp_path / "model", described("torchvision/resnet34"))
    assert (problem.code, problem.pointer) == ("source_model_mismatch", "/source_model/architecture")
    assert "layer1.2.conv1.weight" in problem.context["missing"] and "layer1.2.conv1.weight" in problem.detail
    problem = refused(tmp_path / "model", described("torchvision/mobilenet_v3_small"))
    assert "conv1.weight" in problem.context["unexpected"]
    tensors["stray"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model")
    assert refused(tmp_path / "model").context == {"missing": [], "unexpected": ["stray"], "ill_shaped": []}
    tensors["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    del tensors["bn1.bias"]
    save_file(tensors, tmp_path / "model")
    problem = refused(tmp_path / "model")
    assert problem.context == {
        "missing": ["bn1.bias"],
        "unexpected": ["stray"],
        "ill_shaped": [{"name": "conv1.weight", "expected": [64, 3, 7, 7], "found": [64, 1, 7, 7]}],
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad, tensors, tmp_path):
    tensors["layer2.0.bn1.running_var"][3] = bad
    save_file(tensors, tmp_path / "model")
    problem = refused(tmp_path / "model")
    assert problem.code == "source_model_not_finite" and problem.context["names"] == ["layer2.0.bn1.running_var"]


class Trap:
    """Unpickling it creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["zip", "legacy", "plain", "oldest", "inside a state_dict"])
def test_a_pickle_with_code_is_refused_and_does_not_run(save, tensors, tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "model"
    if save == "zip":
        torch.save(Trap(sprung), path)
    elif save == "legacy":
        torch.save(Trap(sprung), path, _use_new_zipfile_serialization=False)
    elif save == "inside a state_dict":
        torch.save({"state_dict": tensors, "extra": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=4 if save == "plain" else 0))
    assert refused(path).code == "unsafe_pickle"
    assert not sprung.exists()


def test_a_whole_pickled_model_is_refused(resnet, tmp_path):
    torch.save(resnet, tmp_path / "model")
    assert refused(tmp_path / "model").code == "unsafe_pickle"


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_file_that_is_cut_off_says_so(kind, share, tensors, tmp_path):
    path = tmp_path / "model"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refused(path).code == "source_model_truncated"


def test_an_archive_that_would_unpack_to_more_than_it_holds_is_refused_unread(tensors, tmp_path):
    path = tmp_path / "model"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("model/data/0", bytes(50_000_000))
    problem = refused(path)
    assert problem.code == "archive_bomb" and "50000" in problem.detail
    torch.save(tensors, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    assert refused(path).code == "archive_bomb"


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "hello")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is no model at all",
        b"x",
        saved(torch.zeros(3)),
        saved([1, 2, 3]),
        saved({}),
        saved({"epoch": 3, "loss": 0.5}),
        saved({0: torch.zeros(3)}),
        saved({"a": torch.zeros(3, dtype=torch.complex64)}),
        saved({"a": torch.eye(3).to_sparse()}),
        saved({"a": nested()}),
        zipped("readme.txt"),
        struct.pack("<Q", 20) + b'{"a": [1, 2, 3, 4]}  ',
        struct.pack("<Q", 12) + b"{not json!!!",
        pickle.dumps({"a": 1}, protocol=2),
    ],
    ids=["text", "byte", "tensor", "list", "nothing", "numbers", "indices", "complex", "sparse", "nested", "zip", "head", "json", "code"],
)  # fmt: skip
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    (tmp_path / "model").write_bytes(content)
    assert refused(tmp_path / "model").code == "source_model_format"


def test_the_front_ends_look_comes_first(tensors, tmp_path):
    """A file that never went through the front end, and what torch would make of it does not matter."""
    save_file(tensors, tmp_path / "model")
    with (tmp_path / "model").open("ab") as file:
        file.write(b"\0")
    assert "1 bytes follow the last tensor" in refused(tmp_path / "model").detail
    raw = bytearray(zipped("model/data.pkl"))
    end = raw.rindex(b"PK\x05\x06")
    raw[end + 16 : end + 20] = struct.pack("<I", struct.unpack("<I", raw[end + 16 : end + 20])[0] + 5)
    (tmp_path / "model").write_bytes(raw)
    problem = refused(tmp_path / "model")
    assert problem.code == "source_model_truncated" and "before its beginning" in problem.detail


def test_an_empty_or_missing_file_is_told_apart(tmp_path):
    (tmp_path / "model").touch()
    assert refused(tmp_path / "model").code == "empty_file"
    assert refused(tmp_path / "nothing").code == "reference_missing"


def test_a_tensor_that_claims_to_be_huge_is_refused_by_its_shape(tensors, tmp_path):
    tensors["fc.bias"] = torch.zeros(1).expand(10**12)
    torch.save(tensors, tmp_path / "model")
    problem = refused(tmp_path / "model")
    assert problem.code == "source_model_mismatch" and "1000000000000" in problem.detail
