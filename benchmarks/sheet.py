"""A sheet of pictures of one run: what the sensor saw, what T made of it, the true RGB where there is one, and the answers.

    python -m benchmarks.sheet --run WORK/runs/rendered/tgmb_tgkt-0-... --out sheet.png

The images are of the held-out set, evenly spaced, not chosen by what the models say. A sheet of images that are not the
project's own is not written into docs/.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from app.spec import AdaptationSpec, InputSpec
from benchmarks import published, source_models
from benchmarks.environment import ROOT
from worker.adaptation import device, pictures
from worker.adaptation.data import read_evaluation
from worker.adaptation.evaluation import centre_batch, spread
from worker.adaptation.image_sets import Images, LabelledImages
from worker.adaptation.translator import replicate

OURS = "rendered"
SIDE, GAP, TEXT, LINE = 128, 8, 230, 18
WHITE, BLACK, GREEN, RED = "#ffffff", "#222222", "#11701f", "#b01818"


def draw(run: Path, out: Path, rows: int = 12) -> None:
    """run: a folder of benchmarks/runs.py whose method has a T. Raises ValueError where it has none, and where `out` lies in
    docs/ and the images are not ours."""
    told = json.loads((run / "run.json").read_text())
    if told["data"] != OURS and out.resolve().is_relative_to(ROOT / "docs"):
        raise ValueError(f"the images of {told['data']} are not ours to publish: give --out a place outside docs/")
    spec = AdaptationSpec.model_validate_json((run / "spec.json").read_bytes())
    if not (run / "out/artifacts/translator.safetensors").is_file():
        raise ValueError(f"{spec.method} has no translator: there is nothing to show")
    where, input = device.choose(spec.device), spec.source_model.input
    with tempfile.TemporaryDirectory() as folder:
        target, held_out = _images(spec, Path(folder))
        index = spread(np.arange(len(held_out.labels)), rows)
        x = centre_batch(held_out.images, index, input.size).to(where)
        names, truth = [held_out.images.names[i] for i in index], held_out.labels[index]
        models = published.load(spec, run / "out/artifacts", target, where)
    with torch.no_grad():
        translated = models.adapted.translator(x)
        said = pictures.answers(models.models(), x, spec.source_model.classes)
    columns = [replicate(x), translated, *_twins(told["twins"], names, input)]
    _sheet(columns, said, [spec.source_model.classes[k] for k in truth]).save(out)


def _images(spec: AdaptationSpec, folder: Path) -> tuple[Images, LabelledImages]:
    """The target images, and the held-out ones scaled as they are; read anew below `folder`, since a run's own cache goes when it is done."""
    target = published.target_images(spec, folder)
    return target, read_evaluation(
        spec.data, spec.source_model.classes, spec.source_model.input, target, folder, emit=lambda _: None
    )


def _twins(folder: str | None, names: list[str], input: InputSpec) -> list[Tensor]:
    """[RGB images [n, 3, size, size] that show what `names` show], or [] where there are none."""
    if folder is None:
        return []
    with tempfile.TemporaryDirectory() as cache:
        images = source_models.rgb_images(Path(folder), input, Path(cache))
        places = {PurePath(name).with_suffix(""): i for i, name in enumerate(images.names)}
        return [centre_batch(images, np.array([places[PurePath(name).with_suffix("")] for name in names]), input.size)]


def _sheet(columns: list[Tensor], said: list[dict[str, dict[str, Any]]], truth: list[str]) -> Image.Image:
    """columns: [n, 3, H, W] in [0, 1] each. said: of each row, as `pictures.answers` has it."""
    heads = [*("sensor", "T(sensor)", "true RGB")[: len(columns)], "answers"]
    width = GAP + len(columns) * (SIDE + GAP) + TEXT
    sheet = Image.new("RGB", (width, GAP + LINE + len(truth) * (SIDE + GAP)), WHITE)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for column, head in enumerate(heads):
        pen.text((GAP + column * (SIDE + GAP), GAP // 2), head, BLACK, font)
    for row, name in enumerate(truth):
        top = GAP + LINE + row * (SIDE + GAP)
        for column, images in enumerate(columns):
            picture = Image.fromarray(pictures.pixels(images[row])).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(picture, (GAP + column * (SIDE + GAP), top))
        left = GAP + len(columns) * (SIDE + GAP)
        pen.text((left, top), f"true: {name}", BLACK, font)
        for line, (who, model) in enumerate({"teacher": "bridged", "student": "adapted"}.items(), 1):
            answer = said[row][model]
            words = f"{who}: {answer['class']} {100 * answer['confidence']:.0f} %"
            pen.text((left, top + 1.5 * line * LINE), words, GREEN if answer["class"] == name else RED, font)
    return sheet


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=12)
    given: Any = parser.parse_args(arguments)
    if not (given.run / "run.json").is_file():
        parser.error(f"{given.run} is not the folder of a run")
    try:
        draw(given.run, given.out, given.rows)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
