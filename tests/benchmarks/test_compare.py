"""`python -m benchmarks.compare` from end to end on a few small images: real processes of the engine."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import ablate, compare, datasets, published, results, sheet
from benchmarks.campaign import to_do
from benchmarks.datasets import DATASETS, Dataset, MissingDataError
from benchmarks.environment import ROOT
from benchmarks.runs import Run
from benchmarks.source_models import Source
from benchmarks.variants import COMPARE, TOGETHER
from tests.adaptation.conftest import CLASSES, SIDE, SIZE

QUICK = ("--quick", "--steps", "6", "--epochs", "2")
METHODS = ("source_only", "tgmb", "tgmb_tgkt", "oracle")


@pytest.fixture(scope="module")
def work(shapes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, and the same command given again."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "shapes", lambda root, work: shapes)
        command = ["--data", "shapes", "--work", str(folder), "--seeds", "0", "--methods", *METHODS, "--jobs", "2", *QUICK]
        assert compare.main(command) == 0
        before = {
            path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in ("results.jsonl", "log", "spec.json")
        }
        assert compare.main(command) == 0
        assert {path: path.stat().st_mtime_ns for path in before} == before, "a run that was done was run again"
    return folder / "quick"


@pytest.fixture(scope="module")
def lines(work: Path) -> dict[str, dict]:
    return {line["variant"]: line for line in results.read(work / "results.jsonl")}


def test_every_method_has_a_line(lines):
    assert set(lines) == set(METHODS)
    for line in lines.values():
        assert line["error"] is None and 0 <= line["held_out"]["accuracy"] <= 1
        assert line["source"] == lines["oracle"]["source"], "the same source weights for every method"
    assert lines["tgmb_tgkt"]["seconds"]["total"] > lines["tgmb_tgkt"]["seconds"]["transferring"] > 0
    assert lines["tgmb_tgkt"]["peak_mib"]["host"] > 50 and lines["oracle"]["peak_mib"]["host"] > 50
    assert set(lines["tgmb_tgkt"]["images_per_s"]) == {"transferring"}, "the pairs are too far from the task to train T"
    assert lines["tgmb"]["part_of"] == "tgmb_tgkt" and lines["tgmb"]["seconds"]["total"] is None


def by_library_alone(weights: Path, images: Path) -> float:
    """Accuracy of weights on depth in class folders, with timm, Pillow and NumPy."""
    model = timm.create_model("test_resnet", num_classes=len(CLASSES))
    model.load_state_dict(load_file(weights))
    model.eval()
    right, edge = [], (SIDE - SIZE) // 2
    for label, name in enumerate(CLASSES):
        for path in sorted((images / name).iterdir()):
            x = np.clip(np.asarray(Image.open(path), dtype=np.float32) / 5000, 0, 1)
            x = (x[edge : edge + SIZE, edge : edge + SIZE] - 0.5) / 0.5
            with torch.no_grad():
                logits = model(torch.from_numpy(x).expand(1, 3, -1, -1))
            right.append(logits.argmax(1).item() == label)
    return float(np.mean(right))


def test_both_columns_are_what_the_published_weights_score(work, lines, shapes):
    (run,) = (work / "runs/shapes").glob("tgmb_tgkt-0-*")
    weights = run / "out/artifacts/model.safetensors"
    for column, images in (("held_out", shapes.test), ("transductive", shapes.target)):
        assert by_library_alone(weights, images) == pytest.approx(lines["tgmb_tgkt"][column]["accuracy"], abs=1 / 60 + 1e-6)
    (source,) = (work / "sources/shapes").glob("source-0-*.safetensors")
    for column, images in (("held_out", shapes.test), ("transductive", shapes.target)):
        assert by_library_alone(source, images) == pytest.approx(lines["source_only"][column]["accuracy"], abs=1 / 60 + 1e-6)


def test_the_row_of_tgmb_is_what_its_own_run_gives(work, lines, shapes, monkeypatch, tmp_path):
    monkeypatch.setitem(DATASETS, "shapes", lambda root, work: shapes)
    assert compare.main(["--data", "shapes", "--work", str(tmp_path), "--seeds", "0", "--methods", "tgmb", *QUICK]) == 0
    (own,) = results.read(tmp_path / "quick/results.jsonl")
    assert "part_of" not in own and own["digest"] == lines["tgmb"]["digest"]
    assert own["held_out"] == lines["tgmb"]["held_out"] and own["transductive"] == lines["tgmb"]["transductive"]
    assert own["effective_classes"] == pytest.approx(lines["tgmb"]["effective_classes"], abs=1e-4)


def test_only_the_run_folders_say_what_the_classes_of_the_target_images_are(work):
    for spec in work.glob("runs/shapes/*/spec.json"):
        assert "classes_of" not in spec.read_text()
        assert json.loads(spec.read_text())["data"]["target"]["layout"] == "folder"


def test_the_table_and_the_sheet_lie_beside_the_results(work):
    assert "| tgmb_tgkt |" in (work / "results.md").read_text()
    with Image.open(work / "sheet-shapes.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    top = sheet.GAP + sheet.LINE
    columns = [sheet.GAP + k * (sheet.SIDE + sheet.GAP) for k in range(3)]
    seen, translated, rgb = (pixels[top : top + sheet.SIDE, x : x + sheet.SIDE].astype(int) for x in columns)
    assert np.ptp(seen, axis=2).max() == 0, "depth is grey"
    assert np.ptp(rgb, axis=2).max() > 20, "RGB is coloured"
    assert (translated != rgb).any()


def test_pictures_that_are_not_ours_are_not_drawn_into_docs(work):
    (run,) = (work / "runs/shapes").glob("tgmb_tgkt-0-*")
    with pytest.raises(ValueError, match="not ours to publish"):
        sheet.draw(run, ROOT / "docs/sheet.png")
    with pytest.raises(SystemExit) as stopped:
        sheet.main(["--run", str(run), "--out", str(ROOT / "docs/decisions/../sheet.png")])
    assert stopped.value.code == 2 and not (ROOT / "docs/sheet.png").exists()


def test_weights_that_are_not_those_of_the_report_are_refused(work, shapes):
    (folder,) = (work / "runs/shapes").glob("tgmb_tgkt-0-*")
    weights = folder / "out/artifacts/model.safetensors"
    kept = weights.read_bytes()
    head = json.loads((folder / "out/artifacts/model.json").read_text())["head"]
    save_file({name: 30 * value if name == f"{head}.weight" else value for name, value in load_file(weights).items()}, weights)
    told = json.loads((folder / "run.json").read_text())
    spec = run_of(shapes, work, "tgmb_tgkt", told).spec()
    try:
        with pytest.raises(RuntimeError, match="the report says"):
            published.transductive(spec, folder / "out", told["classes_of"])
    finally:
        weights.write_bytes(kept)


def run_of(shapes: Dataset, work: Path, name: str, told: dict | None = None, seed: int = 0) -> Run:
    (weights,) = (work / "sources/shapes").glob("source-0-*.safetensors")
    source = Source(weights, told["source"]["sha256"] if told else "s", 0.5, 0.5)
    return Run(shapes, name, COMPARE[name], seed, source, "fp32", work)


def test_what_is_done_is_not_run_and_stage_1_is_not_run_twice(shapes, work):
    planned = [run_of(shapes, work, name, seed=seed) for seed in (0, 1) for name in ("socket", "tgmb", "tgmb_tgkt")]
    assert [(run.name, run.seed) for run in to_do(planned, set())] == [
        ("socket", 0), ("tgmb_tgkt", 0), ("socket", 1), ("tgmb_tgkt", 1),
    ]  # fmt: skip
    done = {results.key(planned[0].head()), results.key(planned[2].head())}
    assert [(run.name, run.seed) for run in to_do(planned, done)] == [("tgmb", 0), ("socket", 1), ("tgmb_tgkt", 1)]


def test_missing_data_are_told_and_nothing_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    for module in (compare, ablate):
        assert module.main(["--data", "nyu", "--work", str(tmp_path / "work")]) == 2
    assert "--root" in capsys.readouterr().err
    (tmp_path / "nyu/tr_train/rgb").mkdir(parents=True)
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    assert compare.main(["--data", "nyu", "--work", str(tmp_path / "work")]) == 2
    told = capsys.readouterr().err
    assert "tr_train/depth" in told and "tr_train/rgb," not in told
    assert not (tmp_path / "work").exists()
    with pytest.raises(MissingDataError):
        datasets.drone_ir(tmp_path, tmp_path)


def test_a_run_that_fails_is_written_with_its_reason_and_tried_again(shapes, work, tmp_path, monkeypatch, capsys):
    """The pairs lack half of their images: the engine says so."""
    broken = tmp_path / "pairs"
    (broken / "rgb").mkdir(parents=True)
    (broken / "depth").mkdir()
    for path in list((shapes.pairs / "rgb").iterdir())[:8]:
        (broken / "rgb" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setitem(DATASETS, "shapes", lambda root, work: replace(shapes, pairs=broken))
    assert compare.main(["--data", "shapes", "--work", str(tmp_path), "--seeds", "0", "--methods", "socket"]) == 1
    (line,) = results.read(tmp_path / "results.jsonl")
    assert line["error"].startswith("pairs_unmatched")
    assert "pairs_unmatched" in capsys.readouterr().out
    assert results.done([line]) == set()


def test_an_ablation_leaves_the_line_and_the_report_alone(shapes, work, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "shapes", lambda root, work: shapes)
    assert ablate.main(["--data", "shapes", "--work", str(tmp_path), "--seeds", "0", "--variants", "without kl"]) == 0
    (line,) = results.read(tmp_path / "results.jsonl")
    assert line["settings"]["weights"]["kl"] == 0 and set(line["images_per_s"]) == {"transferring"}
    assert list(tmp_path.rglob("runs/**/*.safetensors")) == []
    (report,) = tmp_path.rglob("runs/**/report.json")
    assert json.loads(report.read_text())["settings"] == line["settings"]


def test_the_source_models_of_all_seeds_go_into_one_job(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "shapes", lambda root, work: shapes)
    monkeypatch.setattr(compare, "TOGETHER", {"learned": TOGETHER["tgmb_tgkt, all sources, mixing learned"]})
    command = ["--data", "shapes", "--work", str(tmp_path), "--methods", "--together", "--jobs", "2", *QUICK]
    assert compare.main([*command, "--seeds", "0", "1"]) == 0
    one, other = sorted(results.read(tmp_path / "quick/results.jsonl"), key=lambda line: line["seed"])
    assert one["error"] is None and other["error"] is None
    assert one["others"] == [other["source"]["sha256"]] and other["others"] == [one["source"]["sha256"]]
    assert one["digest"] == other["digest"], "the seeds are of one row"
    reports = [json.loads(path.read_text()) for path in tmp_path.rglob("runs/**/report.json")]
    assert [len(report["further_source_models"]) for report in reports] == [1, 1]
    assert compare.main([*command, "--seeds", "0"]) == 0, "one seed has nothing to put beside it"
    assert len(results.read(tmp_path / "quick/results.jsonl")) == 2


CAMPAIGN = """
import pickle, sys
from pathlib import Path
from benchmarks import compare
from benchmarks.datasets import DATASETS
if __name__ == "__main__":
    shapes = pickle.loads(Path(sys.argv[1]).read_bytes())
    DATASETS["shapes"] = lambda root, work: shapes
    sys.exit(compare.main(sys.argv[2:]))
"""


def test_a_campaign_that_is_stopped_goes_on_from_the_engines_checkpoint(shapes, tmp_path):
    (tmp_path / "shapes.pickle").write_bytes(pickle.dumps(shapes))
    arguments = [
        "--data",
        "shapes",
        "--work",
        str(tmp_path),
        "--seeds",
        "0",
        "--methods",
        "socket",
        "--epochs",
        "40",
        "--jobs",
        "2",
    ]
    command = [sys.executable, "-c", CAMPAIGN, str(tmp_path / "shapes.pickle"), *arguments]
    with subprocess.Popen(command, cwd=ROOT) as campaign:
        until = time.monotonic() + 200
        while not any(b'"transferring"' in log.read_bytes() for log in tmp_path.rglob("events.jsonl")):
            assert campaign.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        campaign.terminate()
        assert campaign.wait(90) == 130
    (folder,) = tmp_path.glob("runs/shapes/*/out")
    assert (folder / "checkpoint.pt").is_file() and results.read(tmp_path / "results.jsonl") == []
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    before, again = (event["resumed_from"] for event in events if event["type"] == "started")
    assert before is None and again[0] == "transferring" and 0 < again[1] < 40
    (line,) = results.read(tmp_path / "results.jsonl")
    assert line["error"] is None and line["seconds"]["total"] is None
