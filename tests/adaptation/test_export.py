"""model.pt2 and model.onnx: they answer as the adapted model does, or are not published. Real exporters, in their processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from app.spec import AdaptationSpec, InputSpec
from tests.worker.embedded import processes_that_name, wait_for
from worker.adaptation import architectures, export, exporter
from worker.adaptation.evaluation import centre_batch
from worker.adaptation.events import Result, parse
from worker.adaptation.image_cache import open_column
from worker.adaptation.image_sets import Images
from worker.adaptation.scaling import Range

from .conftest import CLASSES, SIZE, Ran, spec
from .test_resume import attempt

BOTH = ["torch_export", "onnx"]
ROOT = Path(__file__).parents[2]


NAME = "hall <3> | `x`\n---\nlicense: mit\n---\n[a](http://b)"
WATCHED = """
import os, sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(("/dev/", "/proc/", {folder!r})):
            print("WROTE", path, file=sys.stderr)
    if event in ("os.mkdir", "socket.connect", "socket.getaddrinfo"):
        print("DID", event, arguments, file=sys.stderr) if {folder!r} not in str(arguments[0]) else None
sys.addaudithook(watch)
"""


class Watched(Ran):
    """home: what the job had as its home folder. did: what it wrote and whom it asked outside its folder."""

    def __init__(self, data: Path, result: Result, home: Path, did: list[str]) -> None:
        super().__init__(data / "whole", result)
        self.data, self.home, self.did = data, home, did


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A job that asks for both, in its own process, watched by Python's audit events there and in those of the exporters."""
    folder = tmp_path_factory.mktemp("whole")
    data = Path(shutil.copytree(shapes, folder / "data"))
    for place in ("site", "home", "data/tmp"):
        (folder / place).mkdir()
    (folder / "site/sitecustomize.py").write_text(WATCHED.format(folder=str(data)))
    spec(data, outputs=BOTH, name=NAME)
    command = [sys.executable, "-m", "worker.adaptation", str(data / "spec.json"), "--out", str(data / "whole")]
    places = {"PYTHONPATH": f"{folder / 'site'}:{ROOT}", "HOME": str(folder / "home"), "TMPDIR": str(data / "tmp")}
    environment = os.environ | places | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("ORT_DISABLE_TELEMETRY", "TORCHINDUCTOR_CACHE_DIR"):  # of this process of the tests; torch sets the second
        environment.pop(name, None)
    done = subprocess.run(command, capture_output=True, text=True, cwd=data, env=environment, timeout=280, check=True)
    did = [line for line in done.stderr.splitlines() if line.startswith(("WROTE", "DID"))]
    result = parse(done.stdout.splitlines()[-1].encode())
    assert isinstance(result, Result)
    return Watched(data, result, folder / "home", did)


def answers(ran: Ran, x: np.ndarray) -> dict[str, np.ndarray]:
    """Logits by file, of what was published."""
    artifacts, found = ran.out / "artifacts", {}
    if (file := artifacts / "model.onnx").exists():
        (found[file.name],) = onnxruntime.InferenceSession(file).run(None, {"images": x})
    if (file := artifacts / "model.pt2").exists():
        with torch.no_grad():
            found[file.name] = torch.export.load(file).module()(torch.from_numpy(x)).numpy()
    assert found
    return found


def target_images(ran: Ran) -> torch.Tensor:
    """The centre crops of the target images, [N, C, SIZE, SIZE] in [0, 1], as the engine has them."""
    array = open_column(ran.out / "cache", "target")
    steps = {step["step"]: step for step in prepared(ran)["steps"]}
    images = Images(array, [], Range(16, 1.0, steps["rescale"]["low"], steps["rescale"]["high"], ""), 0.0)
    return centre_batch(images, np.arange(len(array)), SIZE)


def prepared(ran: Ran) -> dict[str, Any]:
    return json.loads((ran.out / "artifacts/preprocessing.json").read_text())


def taken(ran: Ran) -> dict[str, tuple[list, str]]:
    return {one["file"]: (one["shape"], one["after"]) for one in prepared(ran)["inputs"]}


def plain(ran: Ran, x: torch.Tensor) -> np.ndarray:
    """What model.safetensors answers, loaded as model.json says."""
    made: dict[str, Any] = {}
    cwd = Path.cwd()
    os.chdir(ran.out / "artifacts")
    try:
        exec("\n".join(ran.model["load"]), made)
    finally:
        os.chdir(cwd)
    with torch.no_grad():
        return made["model"](x).numpy()


def normalised(x: torch.Tensor) -> torch.Tensor:
    input = InputSpec()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (input.mean, input.std))
    return (x - mean) / std


def test_both_are_published_and_answer_as_the_safetensors_model_does_for_any_number_of_images(whole):
    ran = whole
    assert set(ran.result.summary["outputs"]) == {"safetensors", *BOTH}
    x = normalised(target_images(ran).expand(-1, 3, -1, -1))
    expected = plain(ran, x)
    for n in (1, 2, len(x)):
        for file, logits in answers(ran, x[:n].numpy()).items():
            assert np.abs(logits - expected[:n]).max() < 1e-5, file
    for output in BOTH:
        told = ran.result.summary["outputs"][output]
        assert told["published"] and told["images"] == 60 and told["agreement"] == 1
        assert told["largest_logit"] == pytest.approx(np.abs(expected).max(), rel=1e-4)
        assert told["largest_difference"] < 1e-5
    assert ran.report["outputs"] == ran.result.summary["outputs"]
    assert json.loads((ran.out / "artifacts/metrics.json").read_text())["outputs"] == ran.report["outputs"]
    assert ran.series["outputs/onnx/agreement"] == [[6, 1.0]]
    html = (ran.out / "artifacts/report.html").read_text()
    assert "model.onnx" in html and "model.pt2" in html
    assert taken(ran) == dict.fromkeys(("model.safetensors", "model.pt2", "model.onnx"), (["batch", 3, SIZE, SIZE], "normalize"))
    assert not (ran.out / export.SCRATCH).exists()
    for file in ("model.pt2", "model.onnx"):
        assert str(ROOT).encode() not in (ran.out / "artifacts" / file).read_bytes(), "no path of this machine is in it"


def test_normalising_can_be_a_part_of_the_graph(adapt):
    ran = adapt(method="source_only", outputs=["torch_export"], export={"normalize_in_graph": True})
    x = target_images(ran).expand(-1, 3, -1, -1).contiguous()
    expected = plain(ran, normalised(x))
    for logits in answers(ran, x.numpy()).values():
        assert np.abs(logits - expected).max() < 1e-5
    assert (taken(ran)["model.pt2"][1], taken(ran)["model.safetensors"][1]) == ("repeat_channels", "normalize")


def test_a_model_behind_its_translator_is_exported_with_it(adapt):
    ran = adapt(method="tgmb", outputs=["torch_export"])
    x = target_images(ran)
    from safetensors.torch import load_file

    from worker.adaptation import translator

    T = translator.build("residual", channels=1)
    T.load_state_dict(load_file(ran.out / "artifacts/translator.safetensors"))
    with torch.no_grad():
        expected = plain(ran, normalised(T.eval()(x)))
    for logits in answers(ran, x.numpy()).values():
        assert np.abs(logits - expected).max() < 1e-5
    assert taken(ran)["model.pt2"] == (["batch", 1, SIZE, SIZE], "rescale")


def test_several_source_models_are_exported_as_one_that_normalises_by_itself(adapt, data):
    torch.manual_seed(1)
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), data / "second.safetensors")
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    second = {
        "uri": "second.safetensors",
        "architecture": "timm/test_efficientnet",
        "classes": CLASSES,
        "input": {"size": SIZE, **half},
    }
    ran = adapt(method="source_only", outputs=["torch_export"], further_source_models=[second])
    x = target_images(ran).expand(-1, 3, -1, -1).contiguous()
    for logits in answers(ran, x.numpy()).values():
        assert np.abs(logits - plain(ran, x)).max() < 1e-5
    assert taken(ran)["model.pt2"][1] == "repeat_channels"


@pytest.mark.parametrize(
    ("architecture", "outputs"),
    [("timm/efficientnet_lite0", ["torch_export"]), ("shot/resnet50", ["onnx"])],
)
def test_the_architectures_that_are_used_most_are_exported(adapt, data, architecture, outputs):
    """Each as one, for both take minutes: an ONNX file is made of what torch.export captures. torchvision/resnet18 is as both, with
    the page that loads them, in tests/test_docs.py."""
    torch.manual_seed(0)
    made = architectures.network(architecture, len(CLASSES), InputSpec(size=SIZE))
    save_file(made.state_dict(), data / "source.safetensors")
    ran = adapt(method="source_only", outputs=outputs, source_model={"architecture": architecture})
    for output in outputs:
        told = ran.result.summary["outputs"][output]
        assert told["published"], told
    x = normalised(target_images(ran).expand(-1, 3, -1, -1))[:3]
    expected = plain(ran, x)
    for logits in answers(ran, x.numpy()).values():
        assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()


def test_weights_that_do_not_fit_into_an_onnx_file_lie_beside_it(tmp_path):
    graph = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 300)).requires_grad_(False)
    exporter.write_onnx(graph, (5, 3, 2, 2), tmp_path / "model.onnx", largest_whole=1000)
    assert (tmp_path / "model.onnx.data").stat().st_size >= 12 * 300 * 4 > (tmp_path / "model.onnx").stat().st_size
    x = torch.rand(5, 3, 2, 2)
    assert np.abs(exporter.read_onnx(tmp_path / "model.onnx")(x.numpy()) - graph(x).numpy()).max() < 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits: logits, None),
        (lambda logits: logits + 9e-4 * logits.abs().max(), None),
        (lambda logits: logits + 1.1e-3 * logits.abs().max(), "a logit differs by"),
        (lambda logits: logits.flip(1), "a logit differs by"),
        (lambda logits: logits * float("nan"), "finite"),
        (lambda logits: logits[:, :2], "finite"),
        (lambda logits: logits[:-1], "finite"),
    ],
)
def test_an_output_that_answers_otherwise_is_told_from_one_that_does_not(change, words):
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    reason = export.disagreement(export.compare(logits, change(logits)))
    assert (reason is None) if words is None else words in reason


def test_more_than_one_class_in_a_hundred_that_differs_is_too_many():
    logits = torch.eye(3)[torch.arange(100) % 3] * 1e-9 + 1
    close = logits.clone()
    close[:2] = logits[:2].flip(1)  # the differences are far below the tolerance, the classes are others
    logits, close = logits.double(), close.double()
    expected = torch.tensor([[1.0, 0.9999]]).repeat(100, 1)
    swapped = expected.clone()
    swapped[:2] = expected[:2].flip(1)
    found = export.compare(expected, swapped)
    assert found["largest_difference"] < 1e-3 and found["agreement"] == pytest.approx(0.98)
    assert "98.0% of 100 images" in export.disagreement(found)


def test_an_exporter_that_is_killed_costs_its_own_output_alone(adapt, tmp_path):
    def kill() -> None:
        wait_for(lambda: processes_that_name(f"onnx {tmp_path}".replace(" ", "\0")), "the exporter", 120)
        for number in processes_that_name(f"onnx {tmp_path}".replace(" ", "\0")):
            os.kill(number, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    ran = adapt(method="source_only", outputs=BOTH)
    killer.join()
    outputs = ran.result.summary["outputs"]
    reason = "the exporter was killed by SIGKILL"
    assert outputs["onnx"] == {"published": False, "file": "model.onnx", "reason": reason}
    assert outputs["torch_export"]["published"] and outputs["safetensors"]["published"]
    names = {file.name for file in ran.result.artifacts}
    assert {"model.safetensors", "model.pt2"} <= names and "model.onnx" not in names
    (warned,) = [event for event in ran.events if event.type == "warning" and event.code == "output_refused"]
    assert reason in warned.message and warned.data == {"output": "onnx"}
    assert [warning["code"] for warning in ran.report["warnings"]].count("output_refused") == 1
    assert reason in (ran.out / "artifacts/report.html").read_text()
    assert reason in (ran.out / "artifacts/README.md").read_text()


def test_an_exporter_that_takes_too_long_is_ended(adapt, monkeypatch):
    monkeypatch.setattr(export, "LIMIT_S", 0.05)
    told = adapt(method="source_only", outputs=["onnx"]).result.summary["outputs"]["onnx"]
    assert told == {"published": False, "file": "model.onnx", "reason": "it was not done after 0.05 s"}


def test_what_an_exporter_says_against_a_model_is_the_reason(tmp_path):
    """Of a graph that no exporter takes: its answer has as many rows as there are positive numbers."""
    torch.save(Branching(), tmp_path / "graph.pt")
    np.save(tmp_path / "images.npy", np.zeros((3, 3, 4, 4), np.float32))
    reason = export._run("onnx", tmp_path)
    assert reason is not None and len(reason) <= 320 and "\n" not in reason and str(tmp_path) not in reason


class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.acceptance
def test_a_job_killed_while_it_exports_ends_in_the_same_files(whole):
    data = whole.data

    def exported_one(event) -> bool:
        return event.type == "log" and event.message.startswith("model.pt2 made")

    attempt(data, "parts", exported_one)
    assert not (data / "parts/artifacts").exists()
    wait_for(lambda: not processes_that_name(f"onnx\0{data}/parts"), "the exporter's end, which comes with the engine's")
    assert attempt(data, "parts")[0][-1].type == "result"
    for name in ("model.safetensors", "model.pt2", "model.onnx", "preprocessing.json"):
        assert (data / "parts/artifacts" / name).read_bytes() == (whole.out / "artifacts" / name).read_bytes(), name
    report = json.loads((data / "parts/artifacts/report.json").read_text())
    assert report["outputs"] == whole.report["outputs"]


def test_exporting_writes_nothing_outside_its_folder_and_asks_nobody(whole):
    assert whole.did == [], "\n".join(whole.did)
    assert list(whole.home.iterdir()) == [], "ONNX Runtime's own code writes there unless it is told not to"
    assert {path.name for path in whole.out.iterdir()} == {"artifacts", "cache", "checkpoint.pt", "events.jsonl", "lock"}


def test_the_model_card_is_one_of_hugging_face_and_its_lines_load_what_was_published(whole):
    ran = whole
    artifacts = ran.out / "artifacts"
    card = ModelCard.load(artifacts / "README.md")
    assert (card.data.license, card.data.base_model, card.data.pipeline_tag) == (
        "unknown",
        ["timm/test_resnet"],
        "image-classification",
    )
    assert {"depth", "torch_export", "onnx"} <= set(card.data.tags)
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["accuracy"] == ran.report["summary"]["accuracy"]["adapted"]["accuracy"]
    assert card.data.model_name == " ".join(NAME.split())
    assert yaml.safe_load(card.data.to_yaml())["license"] == "unknown"
    assert "<3>" not in card.text and "[a](" not in card.text
    before = ran.report["summary"]["accuracy"]["source_only"]["accuracy"]
    assert f"| Source model as it is | {100 * before:.1f} % |" in card.text
    for heading in ("How well it does", "How to load it", "What it takes", "How it was made", "Limits"):
        assert f"## {heading}\n" in card.text
    assert f'"epochs": {ran.model["settings"]["transfer"]["epochs"]}' in card.text
    blocks = [part.split("```")[0] for part in card.text.split("```python\n")[1:]]
    assert len(blocks) == 3
    check = "assert tuple(logits.shape) == (2, 3)\n"
    subprocess.run([sys.executable, "-c", check.join([*blocks, ""])], cwd=artifacts, check=True, timeout=120)


def test_the_card_of_a_job_without_labels_claims_no_accuracy(adapt):
    ran = adapt(method="tgmb", data={"evaluation": None})
    card = ModelCard.load(ran.out / "artifacts/README.md")
    assert card.data.eval_results is None and card.data.metrics is None
    assert "its accuracy was not measured" in card.text
    assert "translator.safetensors" in card.text and "must be fed" not in card.text.split("## How to load it")[0]


def test_outputs_are_taken_in_any_order_and_once(data):
    document = spec(data, outputs=["onnx", "onnx", "torch_export"])
    assert AdaptationSpec.model_validate_json(json.dumps(document)).outputs == ("safetensors", "torch_export", "onnx")
