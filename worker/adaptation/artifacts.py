"""Publishing: artifacts are written aside and appear all at once, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from worker.adaptation import checkpoint, ensemble, model_card, preprocessing, readme
from worker.adaptation.events import OutputFile, Result
from worker.adaptation.job import Adapted, Job

FOLDER = "artifacts"
BINARY = "application/octet-stream"
MEDIA_TYPES = {
    ".safetensors": BINARY,
    ".pt2": BINARY,
    ".onnx": BINARY,
    ".data": BINARY,
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".webp": "image/webp",
}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin(folder: Path) -> Path:
    """An empty folder aside, for what is to be published."""
    aside = folder / f"{FOLDER}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    return aside


def publish(job: Job, adapted: Adapted, aside: Path, report: dict[str, Any], html: str) -> Result:
    """Publishes `aside`, with the exports and the pictures that are there already, and model.safetensors, model.json,
    translator.safetensors where there is one, preprocessing.json, README.md, metrics.json, report.json, report.html and, where there
    are pictures, pictures.json. Raises OSError or safetensors' error where the disk is full."""
    tensors = {"model": ensemble.tensors(adapted.classifier)}
    if adapted.translator is not None:
        tensors["translator"] = {name: x.cpu().contiguous() for name, x in adapted.translator.state_dict().items()}
    files = {}
    for name, values in tensors.items():
        path = aside / f"{name}.safetensors"
        save_file(values, path, metadata={"format": "pt"})  # one entry alone: the order of several is not fixed
        files[name] = {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}
    card, outputs = model_card.describe(job, adapted, files), report["outputs"]
    prepared = preprocessing.describe(job, adapted, outputs)
    _write_json(aside / "model.json", card)
    _write_json(aside / "preprocessing.json", prepared)
    (aside / "README.md").write_text(readme.write(card, prepared, report), encoding="utf-8")
    _write_json(aside / "metrics.json", {"series": job.series, "evaluation": report["evaluation"], "outputs": outputs})
    if report["pictures"] is not None:
        _write_json(aside / "pictures.json", report["pictures"])
    _write_json(aside / "report.json", report)
    (aside / "report.html").write_text(html, encoding="utf-8")
    for path in aside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    checkpoint.sync(aside)
    aside.rename(job.folder / FOLDER)
    checkpoint.sync(job.folder)
    return published(job.folder)[1]


def published(folder: Path) -> tuple[dict[str, Any], Result] | None:
    """(identity of the job that made them, result) where artifacts are there: a finished job says its result again."""
    path = folder / FOLDER
    if not path.is_dir():
        return None
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    files = [OutputFile(name=file.name, media_type=MEDIA_TYPES[file.suffix]) for file in sorted(path.iterdir())]
    return report["identity"], Result(artifacts=files, summary=report["summary"])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
