"""A small job of its own making: shapes that are lit and coloured in RGB, and near in depth; classes that RGB shows too."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from app.spec import AdaptationSpec
from worker.adaptation.events import Event, Result, parse
from worker.adaptation.journal import Journal
from worker.adaptation.run import run

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before ONNX Runtime is imported: it would write into the home folder
SIZE = 32
SIDE = 37  # 32 / 0.875
CLASSES = ("disc", "square", "bar")
OTHERS = ("cross", "ring")
HOSTILE = '<script>alert(1)<script> "hall" & 3'


def scene(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 [SIDE, SIDE, 3] and depth in millimetres, uint16 [SIDE, SIDE], of one shape before a wall."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    x, y, r = x + rng.uniform(-4, 4), y + rng.uniform(-4, 4), rng.uniform(8, 11)
    inside = {
        "disc": x**2 + y**2 < r**2,
        "square": np.maximum(abs(x), abs(y)) < r * 0.85,
        "bar": (abs(x) < r * 1.3) & (abs(y) < r * 0.35),
        "cross": ((abs(x) < 3) | (abs(y) < 3)) & (np.maximum(abs(x), abs(y)) < r),
        "ring": (x**2 + y**2 < r**2) & (x**2 + y**2 > (0.6 * r) ** 2),
    }[kind]
    wall, near = rng.uniform(3500, 4500), rng.uniform(1200, 2200)
    depth = np.where(inside, near, wall + 20 * y) + rng.normal(0, 20, x.shape)
    light = (0.8 + 0.2 * x / SIDE)[..., None]
    colours = rng.uniform(0.5, 0.9, 3), rng.uniform(0.0, 0.3, 3)
    rgb = np.where(inside[..., None], colours[0], colours[1]) * light + rng.normal(0, 0.02, (*x.shape, 3))
    return (rgb.clip(0, 1) * 255).astype(np.uint8), depth.clip(1, 65535).astype(np.uint16)


def make(folder: Path, target: int = 60, pairs: int = 32, evaluation: int = 12) -> Path:
    """target/ (no classes), pairs/rgb, pairs/depth, test/<class>/ and source.safetensors, an untrained small ResNet."""
    rng = np.random.default_rng(0)
    for i in range(target):
        _save(folder / "target" / f"{i:03}.png", scene(CLASSES[i % 3], rng)[1])
    for i in range(pairs):
        rgb, depth = scene(OTHERS[i % 2], rng)
        _save(folder / "pairs/rgb" / f"{i:03}.png", rgb)
        _save(folder / "pairs/depth" / f"{i:03}.png", depth)
    for name in CLASSES:
        for i in range(evaluation):
            _save(folder / "test" / name / f"{i:03}.png", scene(name, rng)[1])
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=len(CLASSES)).state_dict(), folder / "source.safetensors")
    return folder


def spec(folder: Path, **changes: Any) -> dict[str, Any]:
    """A spec with relative references, written to folder/spec.json; nested `changes` replace its members."""
    document: dict[str, Any] = {
        "source_model": {
            "uri": "source.safetensors",
            "architecture": "timm/test_resnet",
            "classes": CLASSES,
            "input": {"size": SIZE},
        },
        "data": {
            "target": {"uri": "target", "scaling": {"kind": "millimetres", "high": 5000}},
            "pairs": {"uri": "pairs", "scaling": {"kind": "millimetres", "high": 5000}},
            "evaluation": {"uri": "test"},
        },
        "settings": {
            "precision": "fp32",
            "bridging": {"steps": 12, "batch_size": 8, "validate_every": 4, "calibration": "never"},
            "transfer": {"epochs": 2, "batch_size": 16},
        },
        "device": "cpu",
    }
    _merge(document, changes)
    (folder / "spec.json").write_text(json.dumps(document))
    return document


def _merge(document: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            _merge(document[key], value)
        else:
            document[key] = value


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Nets this small gain nothing from a second thread, and lose a lot where the cores are busy with something else."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, made once: read only."""
    return make(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may spoil, and write its spec into."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


class Ran:
    """What a job did in this process: its result, or what it raised, and all that it said."""

    def __init__(self, out: Path, result: Result) -> None:
        self.out, self.result = out, result
        self.events: list[Event] = [parse(line) for line in (out / "events.jsonl").read_bytes().splitlines()]
        self.report = json.loads((out / "artifacts/report.json").read_text())
        self.model = json.loads((out / "artifacts/model.json").read_text())
        self.series = json.loads((out / "artifacts/metrics.json").read_text())["series"]


@contextmanager
def adapting(data: Path, folder: Path) -> Iterator[Callable[..., Ran]]:
    """call(**changes of the spec) runs the job in this process and returns a Ran; Problems come through."""
    silent = os.open(os.devnull, os.O_WRONLY)

    def call(out: str = "out", **changes: Any) -> Ran:
        place = folder / out
        place.mkdir(exist_ok=True)
        written = AdaptationSpec.model_validate_json(json.dumps(spec(data, **changes)))
        journal = Journal(silent, place)
        try:
            result = run(written, place, journal, data, None, 30.0)
        finally:
            journal.close()
        return Ran(place, result)

    yield call
    os.close(silent)


@pytest.fixture
def adapt(data: Path, tmp_path: Path) -> Iterator[Callable[..., Ran]]:
    """A job over data of the test's own."""
    with adapting(data, tmp_path) as call:
        yield call


@pytest.fixture(scope="module")
def ran(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The default method with T trained, so that the teacher's weights are the source model's, at hand. The job's name and a file's are
    hostile. For tests that look at what it has made."""
    folder = tmp_path_factory.mktemp("ran")
    data = Path(shutil.copytree(shapes, folder / "data"))
    (data / "target/000.png").rename(data / f"target/{HOSTILE}.png")
    with adapting(data, folder) as call:
        return call(name=HOSTILE)
