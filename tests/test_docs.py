"""What the project says of itself, held against the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torchvision
from opentelemetry import environment_variables as of_api
from opentelemetry.sdk import environment_variables as of_sdk
from PIL import Image
from safetensors.torch import save_file

from app.dashboard.form import LAYOUTS, PAIRS_LAYOUTS
from app.method_settings import LossWeights
from app.settings import Settings, Telemetry
from app.spec import WITHOUT_PAIRS, DataSpec, InputSpec, JobRequest, Method, Scaling, TargetReference
from tests.adaptation.conftest import adapting, make
from worker.adaptation import preprocessing
from worker.adaptation.data import read_target
from worker.adaptation.evaluation import centre_batch
from worker.adaptation.run import METHODS
from worker.adaptation.verdict import AGREEMENT, CHURN, ENTROPY_SHARE, FEATURE_DISTANCE_RATIO

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "client/README.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def requests(page: Path) -> list[dict[str, Any]]:
    return [found for block in blocks(page, "json") if {"data", "source_model"} <= (found := json.loads(block)).keys()]


def table(page: str, first: str) -> dict[str, list[str]]:
    """Rows of the page's tables whose first cell has the text: that cell without backquotes -> the other cells."""
    rows = (line.strip("|").split("|") for line in text(page).splitlines() if line.startswith("|"))
    return {cells[0].strip(" `"): [cell.strip(" `") for cell in cells[1:]] for cells in rows if first in cells[0]}


@each_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_every_variable_is_read_by_the_settings_the_command_the_tests_or_compose(page: Path) -> None:
    known = {f"MODALBRIDGE_{name.upper()}" for name in Settings.model_fields}
    readers = (
        "client/modalbridge/cli/options.py", "tests/conftest.py", "tests/worker/test_brokers.py",
        "docker-compose.yml",
    )  # fmt: skip
    known |= {name for reader in readers for name in re.findall(r"MODALBRIDGE_[A-Z0-9_]+", text(reader))}
    assert set(re.findall(r"MODALBRIDGE_[A-Z0-9_]+", page.read_text(encoding="utf-8"))) - known == set()


@each_page
def test_every_variable_of_opentelemetry_is_one_of_its_own(page: Path) -> None:
    known = {value for module in (of_api, of_sdk) for name, value in vars(module).items() if name.startswith("OTEL_")}
    named = {name for name in re.findall(r"OTEL_[A-Z0-9_]+", page.read_text(encoding="utf-8")) if not name.endswith("_")}
    assert named - known == set()


@each_page
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    code = re.findall(r"`[^`\n]+`|^ {4}.+$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for line in code for name in re.findall(r"(?:^|[` ])make ([a-z]+)", line)} - targets == set()


@each_page
def test_every_request_is_one(page: Path) -> None:
    for request in requests(page):
        JobRequest.model_validate_json(json.dumps(request))


@each_page
def test_every_test_that_is_named_exists(page: Path) -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert named - set(re.findall(r"^def (test_\w+)", written, re.MULTILINE)) == set()


def test_every_file_that_contributors_are_sent_to_is_there_and_has_what_they_look_for() -> None:
    page = text("CONTRIBUTING.md")
    tops = "|".join(sorted(path.name for path in ROOT.iterdir() if path.is_dir()))
    paths = set(re.findall(rf"`((?:{tops})/[^`\s]+)`", page))
    assert len(paths) > 30 and [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    sought = re.findall(r"`(\w+)`(?: of| in)\s+`([\w/]+\.py)`", page)
    assert len(sought) > 10
    assert [(name, path) for name, path in sought if not re.search(rf"\b{name}\b", text(path))] == []


@each_page
def test_every_shell_block_is_shell(page: Path) -> None:
    for block in blocks(page, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@each_page
def test_every_python_block_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_there_are_requests_to_look_at() -> None:
    assert [page.name for page in PAGES if requests(page)] == ["README.md", "data.md", "outputs.md", "quickstart.md"]


def test_every_setting_is_told_with_its_default() -> None:
    told = {name: cells[0] for name, cells in table("docs/operating.md", "`MODALBRIDGE_").items()}
    expected = {}
    for name, field in Settings.model_fields.items():
        empty = field.default in ("", ())
        expected[f"MODALBRIDGE_{name.upper()}"] = (
            "(empty)"
            if empty
            else "(unset)"
            if field.default is None
            else f"{field.default:.0f}"
            if isinstance(field.default, float)
            else str(field.default)
        )
    assert told == expected, "docs/operating.md has a row for each field of app/settings.py, with its default, and no other"


def test_every_variable_of_opentelemetry_that_is_read_is_told() -> None:
    told = {name for cell in table("docs/operating.md", "`OTEL_") for name in re.findall(r"OTEL_\w+", cell)}
    assert told == {f"OTEL_{name.upper()}" for name in Telemetry.model_fields}


def test_every_loss_is_told_with_its_weight_and_default() -> None:
    rows = table("docs/method.md", "`L_").values()
    assert {row[1]: float(row[2]) for row in rows} == {
        f"settings.weights.{name}": field.default for name, field in LossWeights.model_fields.items()
    }, "docs/method.md has a row for each weight of app/method_settings.py, with its default, and no other"


def test_every_method_has_its_module_and_is_told() -> None:
    told = text("docs/method.md").partition("\n## Methods\n")[2].partition("\n## ")[0]
    methods = get_args(Method)
    assert tuple(METHODS) == methods, "METHODS of worker/adaptation/run.py has each method of app/spec.py"
    _, *rows = re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)
    assert tuple(rows) == methods, "docs/method.md has a row for each method"


def test_every_layout_is_told() -> None:
    told = text("docs/data.md").partition("\n## Layouts\n")[2].partition("\n## ")[0]
    named = {name for line in re.findall(r"^### .*|^\| `\w+` \|", told, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)}
    missing = {*LAYOUTS, *PAIRS_LAYOUTS} - named
    assert missing == set(), "docs/data.md has a heading, or a row of the data sets, for each layout of app/spec.py"


def test_every_page_says_alike_which_methods_need_no_pairs() -> None:
    names = [f"`{name}`" for name in WITHOUT_PAIRS]
    (row,) = (line for line in text("docs/data.md").splitlines() if line.startswith("| `data.pairs`"))
    told = DataSpec.model_fields["pairs"].description or ""
    assert re.findall(r"`\w+`", row.split("|")[4]) == names, "the row of `data.pairs` in docs/data.md names each of WITHOUT_PAIRS"
    assert told.startswith(f"Needed by every method but {' and '.join(WITHOUT_PAIRS)}."), (
        "the docstring of `pairs` in app/spec.py names each of WITHOUT_PAIRS"
    )


def test_what_the_method_gains_is_what_the_results_say() -> None:
    told = text("docs/method.md").partition("## What it gains")[2].partition("\n## ")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines() if line.startswith("|")]
    methods = ["oracle" if name == "trained on labels" else name.strip("`") for name in head[1:]]
    sections = dict(part.split("\n", 1) for part in text("docs/results.md").split("\n### ")[1:])
    assert [row[0] for row in rows] == ["drone_ir", "nyu", "rendered", "average"]
    for name, *figures in rows:
        section = sections["Average over the data sets" if name == "average" else name]
        measured = {cells[1].strip(): cells[2].strip() for line in section.splitlines() if len(cells := line.split("|")) > 2}
        assert dict(zip(methods, figures, strict=True)) == {method: measured[method] for method in methods}, name


def test_the_verdicts_thresholds_are_those_of_the_code() -> None:
    rows = text("docs/method.md").partition("## The verdict")[2]
    for word, (near, far) in {"above": ENTROPY_SHARE, "below": AGREEMENT}.items():
        assert f"| {word} {near} | {word} {far} |" in rows
    assert "| above {} | above {} |".format(*FEATURE_DISTANCE_RATIO) in rows
    assert f"| above {CHURN} | |" in rows


def test_the_quickstarts_input_is_the_engines(tmp_path: Path) -> None:
    """The function on the page, which uses nothing of ours, gives what the model was adapted and evaluated on."""
    rng = np.random.default_rng(0)
    for i in range(8):
        depth = (2000 + 30 * np.add.outer(np.arange(60), np.arange(80)) + rng.normal(0, 20, (60, 80))).astype(np.uint16)
        depth[rng.integers(0, 60, 40), rng.integers(0, 80, 40)] = 0
        Image.fromarray(depth).save(tmp_path / f"{i}.png")
    input = InputSpec(size=32, crop_ratio=0.8)
    data = DataSpec(target=TargetReference(uri=str(tmp_path)))
    target = read_target(data, input, tmp_path / ".cache", emit=lambda _: None)
    (block,) = (block for block in blocks(ROOT / "docs/quickstart.md", "python") if "def depth_to_input" in block)
    page: dict[str, Any] = {}
    exec(block.partition("\ncard = ")[0], page)
    sensor = {"gain": target.range.gain, "low": target.low, "high": target.high, "no_reading": 0}
    card = {"input": input.model_dump(), "sensor": sensor}
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (input.mean, input.std))
    for i, name in enumerate(target.names):
        ours = (centre_batch(target, np.array([i]), input.size).expand(-1, 3, -1, -1) - mean) / std
        assert (page["depth_to_input"](tmp_path / name, card) - ours).abs().max() < 1e-3


def test_the_page_of_the_outputs_loads_each_and_prepares_images_as_the_engine_does(tmp_path: Path) -> None:
    """Its blocks are run, in order, in a folder with what a job has published; the images go through its `prepare`."""
    data = make(tmp_path / "data")
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(num_classes=3).state_dict(), data / "source.safetensors")
    model = {"architecture": "torchvision/resnet18"}
    with adapting(data, tmp_path) as adapt:
        ran = adapt(method="source_only", source_model=model, outputs=["torch_export", "onnx"])
    assert [told["published"] for told in ran.result.summary["outputs"].values()] == [True, True, True]
    artifacts = ran.out / "artifacts"
    (artifacts / "frame.png").write_bytes((data / "target/007.png").read_bytes())
    by_safetensors, by_torch, by_onnx, prepare = blocks(ROOT / "docs/outputs.md", "python")
    for block in (by_safetensors, by_torch, by_onnx):
        assert len(block.splitlines()) <= 10
    told = "found.append(logits if isinstance(logits, np.ndarray) else logits.detach().numpy())\n"
    lines = [
        prepare,
        "import torch; images = torch.from_numpy(images); found = []",
        *(block + told for block in (by_safetensors, by_torch, by_onnx)),
        "np.save('found.npy', found); np.save('images.npy', images)",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=artifacts, timeout=120)
    found, images = np.load(artifacts / "found.npy"), np.load(artifacts / "images.npy")
    assert found.shape == (3, 1, 3) and np.abs(found - found[0]).max() < 1e-3 * np.abs(found).max()
    target = read_target(
        DataSpec(target=TargetReference(uri=str(data / "target"), scaling=Scaling(kind="millimetres", high=5000))),
        InputSpec(size=32), tmp_path / ".cache", emit=lambda _: None,
    )  # fmt: skip
    ours = centre_batch(target, np.array([target.names.index("007.png")]), 32).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(getattr(InputSpec(), name)).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert np.abs(images - ((ours - mean) / std).numpy()).max() < 1e-5


@pytest.mark.parametrize("shape", [(60, 80), (80, 61), (50, 50), (37, 55)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_the_pages_prepare_follows_preprocessing_json(tmp_path: Path, shape: tuple[int, int], kind: type, resize: str) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(1, 200, shape).astype(kind)).save(tmp_path / f"{i}.png")
    input = InputSpec(size=32, resize=resize)
    data = DataSpec(target=TargetReference(uri=str(tmp_path), modality="infrared"))
    target = read_target(data, input, tmp_path / ".cache", emit=lambda _: None)
    (block,) = (block for block in blocks(ROOT / "docs/outputs.md", "python") if "def prepare" in block)
    page: dict[str, Any] = {}
    exec(block.partition("\ncard = ")[0], page)
    steps = preprocessing.steps_of(target, data.target, input, source_models=1, translated=False)
    card = {"steps": steps, "inputs": [{"file": "model.onnx", "after": "normalize"}]}
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (input.mean, input.std))
    for i, name in enumerate(target.names):
        ours = (centre_batch(target, np.array([i]), input.size).expand(-1, 3, -1, -1) - mean) / std
        assert np.abs(page["prepare"](tmp_path / name, card, "model.onnx") - ours.numpy()).max() < 1e-5
