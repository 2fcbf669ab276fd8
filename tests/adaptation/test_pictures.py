"""The picture strip: which images it shows, that its tiles are what the network sees, and that its answers are the models' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from worker.adaptation import pictures, translator

from .conftest import CLASSES, HOSTILE, SIDE, SIZE, Ran


@pytest.fixture(scope="module")
def strip(ran: Ran) -> dict:
    return json.loads((ran.out / "artifacts/pictures.json").read_text())


def seen(path: Path) -> torch.Tensor:
    """Centre crop of a file that is stored at its own size, in [0, 1], [C, SIZE, SIZE]. Depth: of 5 m."""
    raw = np.asarray(Image.open(path)).astype(np.float32)
    assert raw.shape[:2] == (SIDE, SIDE)
    raw = raw[..., None] / np.float32(5000) if raw.ndim == 2 else raw / np.float32(255)
    start = round((SIDE - SIZE) / 2)
    return torch.from_numpy(raw[start : start + SIZE, start : start + SIZE]).permute(2, 0, 1).clamp(0, 1)


def classifier(ran: Ran, which: str) -> torch.nn.Module:
    path = ran.out.parent / "data/source.safetensors" if which == "source" else ran.out / "artifacts/model.safetensors"
    model = timm.create_model("test_resnet", num_classes=len(CLASSES))
    model.load_state_dict(load_file(path))
    return model.eval()


@torch.no_grad()
def test_tiles_and_answers_are_those_of_the_published_weights(ran: Ran, strip: dict) -> None:
    card = ran.model["translator"]
    T = translator.build(card["kind"], card["channels"])
    T.load_state_dict(load_file(ran.out / "artifacts/translator.safetensors"))
    T.eval()
    mean, std = (torch.tensor(ran.model["input"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    source, adapted = (classifier(ran, which) for which in ("source", "adapted"))
    sprite = np.asarray(Image.open(ran.out / "artifacts/pictures.webp"))
    assert sprite.shape == (strip["height"], strip["width"], 3)
    data = ran.out.parent / "data"
    folders = {"target": data / "target", "evaluation": data / "test", "pair": data / "pairs/depth"}
    for row in strip["rows"]:
        x = seen(folders[row["kind"]] / row["name"])[None]
        expected = {"sensor": x.expand(-1, 3, -1, -1), "translation": T(x)}
        fed = {"source_only": (source, expected["sensor"]), "bridged": (source, expected["translation"]),
               "adapted": (adapted, expected["sensor"])}  # fmt: skip
        if row["kind"] == "pair":
            expected["rgb"] = seen(data / "pairs/rgb" / row["name"])[None]
            fed["rgb"] = (source, expected["rgb"])
        assert row["tiles"].keys() == expected.keys()
        for column, (left, top) in row["tiles"].items():
            tile = sprite[top : top + SIZE, left : left + SIZE].astype(float)
            assert np.abs(tile / 255 - expected[column][0].permute(1, 2, 0).numpy()).max() < 0.5 / 255 + 1e-5, (
                row["name"],
                column,
            )
        assert row["answers"].keys() == fed.keys()
        for name, (model, image) in fed.items():
            p = model((image - mean) / std).softmax(1)[0]
            assert row["answers"][name]["confidence"] == pytest.approx(p.max().item(), abs=1e-3)
            assert p[CLASSES.index(row["answers"][name]["class"])].item() == pytest.approx(p.max().item(), abs=1e-4)


def test_labels_are_told_of_the_evaluation_set_alone_and_no_pair_was_trained_on(ran: Ran, strip: dict) -> None:
    by_kind = {kind: [row for row in strip["rows"] if row["kind"] == kind] for kind in ("target", "evaluation", "pair")}
    assert {kind: len(rows) for kind, rows in by_kind.items()} == {"target": 6, "evaluation": 3, "pair": 3}
    assert [row["truth"] for row in by_kind["evaluation"]] == [row["name"].partition("/")[0] for row in by_kind["evaluation"]]
    assert {row["truth"] for row in by_kind["target"] + by_kind["pair"]} == {None}
    assert HOSTILE in {Path(row["name"]).stem for row in by_kind["target"]}
    held = ran.report["evaluation"]["pairs"]["held_out"]
    numbers = [int(Path(row["name"]).stem) for row in by_kind["pair"]]
    assert numbers == sorted(set(numbers)) and numbers[-1] - numbers[0] == held - 1, "the held-out ones are one block"


def test_as_many_as_are_asked_for_and_none_if_so(adapt) -> None:
    quiet = adapt("none", method="source_only", pictures=0)
    names = {path.name for path in (quiet.out / "artifacts").iterdir()}
    assert not names & {"pictures.json", "pictures.webp"} and quiet.report["pictures"] is None
    assert "<img" not in (quiet.out / "artifacts/report.html").read_text()
    first, again = (adapt(out, method="source_only", pictures=16, data={"pairs": None}) for out in ("first", "again"))
    rows = first.report["pictures"]["rows"]
    assert [row["kind"] for row in rows] == ["target"] * 16 + ["evaluation"] * 8
    assert all(row["tiles"].keys() == {"sensor"} and row["answers"].keys() == {"source_only", "adapted"} for row in rows)
    for name in ("pictures.json", "pictures.webp"):
        assert (first.out / "artifacts" / name).read_bytes() == (again.out / "artifacts" / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([], [0, 20, 40, 59, 79, 99]),
        ([7], [7, 20, 40, 59, 79, 99]),
        (range(50, 59), [0, 20, 50, 58, 79, 99]),
        (range(30, 61), [0, 20, 40, 59, 79, 99]),
        (range(100), [0, 20, 40, 59, 79, 99]),
    ],
)
def test_the_choice_is_spread_evenly_with_some_that_changed(changed, expected) -> None:
    mask = np.isin(np.arange(100), list(changed))
    assert pictures.choose(mask, 6).tolist() == expected


def test_few_images_are_all_shown_once() -> None:
    assert pictures.choose(np.array([True, False, True]), 16).tolist() == [0, 1, 2]
    assert pictures.choose(np.zeros(0, bool), 6).tolist() == []


def test_large_images_are_shrunk_and_small_ones_are_not() -> None:
    x = torch.rand(3, 192, 192, generator=torch.Generator().manual_seed(0))
    shrunk = pictures.tile(x)
    assert shrunk.shape == (96, 96, 3)
    mean = (x * 255).round().view(3, 96, 2, 96, 2).mean((2, 4)).permute(1, 2, 0).numpy()
    assert np.abs(shrunk - mean).max() <= 1
    assert (pictures.tile(x[:, :64, :64]) == (x[:, :64, :64] * 255).round().permute(1, 2, 0).numpy()).all()
