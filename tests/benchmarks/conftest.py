"""A set of a few shapes in the layout of a benchmark, and lines of results made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.datasets import Dataset
from tests.adaptation.conftest import CLASSES, OTHERS, SIZE, scene


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Millimetres of depth and RGB, three classes; a backbone of random weights, without the last layer."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, count in {"train": 20, "test": 5}.items():
        for name in CLASSES:
            for i in range(count):
                rgb, depth = scene(name, rng)
                save(folder / split / "rgb" / name / f"{i:02}.png", rgb)
                save(folder / split / "depth" / name / f"{i:02}.png", depth)
    for i in range(16):
        rgb, depth = scene(OTHERS[i % 2], rng)
        save(folder / "ti/rgb" / f"{i:02}.png", rgb)
        save(folder / "ti/depth" / f"{i:02}.png", depth)
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0)
    save_file({name: value.half() for name, value in backbone.state_dict().items()}, folder / "backbone.safetensors")
    return Dataset(
        name="shapes",
        architecture="timm/test_resnet",
        classes=CLASSES,
        size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_ratio=0.875,
        modality="depth",
        scaling={"kind": "millimetres", "high": 5000},
        rgb_train=folder / "train/rgb",
        rgb_test=folder / "test/rgb",
        target=folder / "train/depth",
        test=folder / "test/depth",
        pairs=folder / "ti",
        pairs_target="depth",
        twins=folder / "test/rgb",
        backbone=folder / "backbone.safetensors",
        source_epochs=4,
        steps=6,
        epochs=2,
    )


def line(data: str = "a", variant: str = "socket", seed: int = 0, held_out: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A line of results.jsonl whose figures are the ones given."""
    return {
        "data": data,
        "variant": variant,
        "method": variant,
        "seed": seed,
        "digest": "d1",
        "settings": {"bridging": {"steps": 6}, "transfer": {"epochs": 2}},
        "source": {"sha256": f"s{seed}", "accuracy": 0.8, "balanced_accuracy": 0.8},
        "held_out": {"accuracy": held_out, "balanced_accuracy": held_out / 2},
        "transductive": {"accuracy": 0.25, "balanced_accuracy": 0.25},
        "effective_classes": 2.0,
        "seconds": {"transferring": 3.0, "total": 10.0},
        "images_per_s": {"transferring": 100.0},
        "peak_mib": {"host": 500, "device": None},
        "verdict": "deploy",
        "teacher_student_agreement": None,
        "environment": {
            "cpu": "C", "gpu": None, "cores": 2, "threads": 1, "jobs": 2, "python": "3", "torch": "2", "commit": "c", "precision": "fp32",
        },
        "error": None,
    } | changes  # fmt: skip
