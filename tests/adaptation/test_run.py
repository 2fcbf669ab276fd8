"""The engine as a process of its own: spec in, events out, artifacts on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.errors import Problem
from worker.adaptation import checkpoint
from worker.adaptation.events import parse

from .conftest import spec
from .engine import Ended, engine

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.acceptance


def failed(ended: Ended) -> dict:
    assert ended.returncode == 1, ended.stderr
    return ended.events[-1].problem


def test_a_job_ends_in_artifacts_that_the_library_loads_alone(data):
    spec(data, source_model={"architecture": "torchvision/resnet18"})
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(num_classes=3).state_dict(), data / "source.safetensors")
    command = [sys.executable, "-W", "error", "-m", "worker.adaptation", str(data / "spec.json"), "--out", str(data / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, cwd=data.parent, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
    events = [parse(line) for line in ran.stdout.splitlines()]
    phases = [event.phase for event in events if event.type == "phase"]
    assert phases == ["preparing", "bridging", "transferring", "evaluating", "publishing"]
    assert (events[0].type, events[-1].type) == ("started", "result")
    fractions = [event.fraction for event in events if event.type == "progress"]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] <= 1
    assert (data / "out/events.jsonl").read_bytes() == ran.stdout

    artifacts = data / "out/artifacts"
    named = {file.name for file in events[-1].artifacts}
    assert named == {path.name for path in artifacts.iterdir()}
    assert named == {
        "model.safetensors", "model.json", "translator.safetensors", "metrics.json", "report.json", "report.html",
        "preprocessing.json", "README.md", "pictures.json", "pictures.webp",
    }  # fmt: skip
    assert events[-1].summary["outputs"] == {"safetensors": {"published": True, "file": "model.safetensors"}}
    model = json.loads((artifacts / "model.json").read_text())
    alone = subprocess.run([sys.executable, "-c", "\n".join([*model["load"], "import torch; print(model(torch.zeros(2, 3, 32, 32)).shape)"])],
                           cwd=artifacts, capture_output=True, text=True, check=True)  # fmt: skip
    assert alone.stdout.strip() == "torch.Size([2, 3])"
    assert model["weights"]["sha256"] == hashlib.sha256((artifacts / "model.safetensors").read_bytes()).hexdigest()
    assert model["classes"] == ["disc", "square", "bar"]
    assert model["input"]["size"] == 32
    assert (model["sensor"]["low"], model["sensor"]["high"], model["sensor"]["modality"]) == (0, 5000, "depth")
    assert any("Repeat the one channel" in step for step in model["sensor"]["steps"])

    again = engine(data)
    assert again.returncode == 0
    assert again.events[-1] == events[-1]
    assert "progress" not in {event.type for event in again.events}

    spec(data, source_model={"architecture": "torchvision/resnet18"}, seed=1)
    problem = failed(engine(data))
    assert problem["code"] == "invalid_request"
    assert "another specification (it differs at /seed)" in problem["detail"]


def test_a_job_goes_on_in_a_version_that_knows_other_settings(adapt):
    """What only one version has is no difference; another value of what both have is one."""
    first = adapt(method="source_only")
    report = first.out / "artifacts/report.json"
    told = json.loads(report.read_text())
    settings = told["identity"]["spec"]["settings"]
    del settings["bridging"]["ema"]
    settings["transfer"]["momentum_of_tomorrow"] = 0.5
    report.write_text(json.dumps(told))
    assert adapt(method="source_only").result == first.result
    settings["weights"]["kl"] += 1
    report.write_text(json.dumps(told))
    with pytest.raises(Problem, match=r"another specification \(it differs at /settings/weights/kl\)"):
        adapt(method="source_only")


def test_the_name_and_labels_may_change_when_a_job_goes_on(adapt):
    first = adapt(method="source_only")
    assert adapt(method="source_only", name="renamed", labels={"team": "robots"}).result == first.result


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"colour": 1}, "unknown_field", "/colour"),
        ({"settings": {"weights": {"rec": -1}}}, "invalid_request", "/settings/weights/rec"),
        ({"data": {"pairs": None}}, "invalid_request", "/data/pairs"),
        ({"source_model": {"uri": "gone.safetensors"}}, "reference_missing", "/source_model/uri"),
        ({"source_model": {"uri": "target"}}, "reference_missing", "/source_model/uri"),
        ({"data": {"target": {"uri": "gone"}}}, "reference_missing", "/data/target/uri"),
        ({"source_model": {"architecture": "timm/test_resnat"}}, "unknown_architecture", "/source_model/architecture"),
    ],
)
def test_what_is_wrong_is_a_failed_event_with_a_pointer(data, changes, code, pointer):
    spec(data, **changes)
    problem = failed(engine(data))
    assert (problem["code"], problem["pointer"]) == (code, pointer)
    assert problem["remedy"]


def test_a_spec_that_is_not_there_is_a_failed_event(data):
    assert failed(engine(data, file="nothing.json"))["code"] == "reference_missing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_a_problem(data):
    spec(data, device="cuda")
    problem = failed(engine(data))
    assert (problem["code"], problem["pointer"]) == ("device_unavailable", "/device")


def test_with_roots_data_lie_below_them_and_references_are_absolute(data):
    uris = {
        name: {"uri": str(data / folder)} for name, folder in (("target", "target"), ("pairs", "pairs"), ("evaluation", "test"))
    }
    spec(data, method="source_only", data=uris, source_model={"uri": str(data / "source.safetensors")})
    (data.parent / "other").mkdir()
    assert failed(engine(data, "--roots", str(data.parent / "other")))["code"] == "reference_outside_roots"
    assert engine(data, "--roots", str(data.parent / "other"), str(data)).returncode == 0


UNTEXT = os.fsdecode(b"caf\xe9.png")
"""A file's name that is no text: the file system takes any bytes."""


@pytest.mark.parametrize("broken", [1, 6])
def test_a_broken_image_whose_name_is_no_text_is_named_all_the_same(data, broken):
    names = [UNTEXT, *(f"damaged{i}.png" for i in range(broken - 1))]
    for name in names:
        (data / "target" / name).write_bytes(b"no image")
    (data / "target/000.png").rename(data / "target" / os.fsdecode(b"0\xff0.png"))
    spec(data, method="source_only", data={"broken_image_share": 0.05})
    ended = engine(data)
    if broken == 1:
        assert ended.returncode == 0, ended.stderr
        (event,) = [event for event in ended.events if event.type == "data" and event.reference == "target"]
        assert event.broken == 1 and event.broken_names[0].startswith("caf\\udce9.png: ")
        report = json.loads((data / "out/artifacts/report.json").read_text())
        assert report["data"][0]["broken_names"] == event.broken_names
        rows = json.loads((data / "out/artifacts/pictures.json").read_text())["rows"]
        assert "0\\udcff0.png" in {row["name"] for row in rows}
    else:
        problem = failed(ended)
        assert problem["code"] == "too_many_broken_images"
        assert any("caf\\udce9.png" in name for name in problem["names"]) and "caf\\udce9.png" in problem["detail"]


def test_what_libraries_print_goes_to_stderr(data):
    spec(data, method="source_only")
    code = (
        "import os, sys; from worker.adaptation import __main__ as engine\n"
        "real = engine._read\n"
        "def noisy(path):\n"
        "    print('from python'); os.system('echo from a child'); return real(path)\n"
        "engine._read = noisy\n"
        f"sys.exit(engine.main([{str(data / 'spec.json')!r}, '--out', {str(data / 'out')!r}]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=120, check=True)
    assert [parse(line).type for line in ran.stdout.splitlines()][-1] == "result"
    assert b"from python" in ran.stderr
    assert b"from a child" in ran.stderr


def test_a_full_disk_is_said_so_and_the_job_goes_on_when_there_is_room(data):
    spec(data)
    room = 400_000  # bytes a file: the cache fits, a checkpoint does not
    problem = failed(engine(data, largest_file=room))
    assert problem["code"] == "disk_full"
    assert not (data / "out/artifacts").exists()
    assert not list((data / "out").glob("*.partial"))
    assert engine(data).returncode == 0


def test_changed_data_start_the_job_over(adapt, data):
    ran = adapt()
    shutil.rmtree(ran.out / "artifacts")
    (data / "target/000.png").unlink()
    again = adapt()
    assert "data_changed" in {warning["code"] for warning in again.report["warnings"]}
    assert again.report["evaluation"]["target"]["images"] == 59
    assert again.series["bridging/L_rec"] != ran.series["bridging/L_rec"]


def test_other_pixels_under_the_same_names_start_the_job_over(adapt, data):
    ran = adapt()
    shutil.rmtree(ran.out / "artifacts")
    first, other = (data / "target" / name for name in ("000.png", "001.png"))
    first.write_bytes(other.read_bytes())
    again = adapt()
    assert "data_changed" in {warning["code"] for warning in again.report["warnings"]}
    assert again.series["bridging/L_IM"] != ran.series["bridging/L_IM"]


def test_a_checkpoint_of_a_version_that_kept_no_digest_of_the_pixels_goes_on(adapt):
    ran = adapt()
    shutil.rmtree(ran.out / "artifacts")
    state = checkpoint.load(ran.out)
    del state["identity"]["images"]
    checkpoint.save(ran.out, state)
    assert not [warning for warning in adapt().report["warnings"] if warning["code"] == "data_changed"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_published_weights_are_those_that_were_evaluated(data, device):
    """The labelled accuracy of the report can be had from model.safetensors by the steps of model.json alone."""
    import timm
    from PIL import Image

    spec(data, device=device)
    assert engine(data).returncode == 0
    artifacts = data / "out/artifacts"
    model = json.loads((artifacts / "model.json").read_text())
    net = timm.create_model("test_resnet", num_classes=3)
    net.load_state_dict(load_file(artifacts / "model.safetensors"))
    net.eval()
    mean, std = (torch.tensor(model["input"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    right = total = 0
    for label, name in enumerate(model["classes"]):
        for path in sorted((data / "test" / name).iterdir()):
            raw = torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint16).float().view(1, 1, 37, 37)
            x = ((raw - model["sensor"]["low"]) / (model["sensor"]["high"] - model["sensor"]["low"])).clamp(0, 1)
            x = x[:, :, 2:34, 2:34].expand(-1, 3, -1, -1)
            with torch.no_grad():
                right += int(net((x - mean) / std).argmax() == label)
            total += 1
    report = json.loads((artifacts / "report.json").read_text())
    assert right / total == pytest.approx(report["summary"]["accuracy"]["adapted"]["accuracy"], abs=1.01 / total)
