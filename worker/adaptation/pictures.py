"""The picture strip: a few images as the network sees them, what T makes of them, and what each model says of them.

    pictures.webp   all of them as tiles of one sprite, lossless
    pictures.json   a row an image: what it is, where its tiles lie, and the answers

Which images is a matter of the listing, the seed and the models' answers, never of labels: the same job shows the same ones.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.errors import readable
from worker.adaptation.assessment import models_of, with_adapted
from worker.adaptation.device import to_device
from worker.adaptation.evaluation import Model, centre_batch, centre_pairs, spread
from worker.adaptation.image_sets import Images, LabelledImages
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods.tgmb import split
from worker.adaptation.translator import replicate

JSON, SPRITE = "pictures.json", "pictures.webp"
COLUMNS = ("sensor", "translation", "rgb")
LARGEST_TILE = 96
"""Pixels. Smaller inputs are shown as they are, larger ones shrunk: three dozen tiles are then a few hundred kilobytes."""
MARGIN = 2
"""Pixels around each tile in the sprite that repeat its edge: a browser that scales a tile mixes none of its neighbour in."""
Tiles = dict[str, np.ndarray]
"""By column: uint8 [side, side, 3]."""


@dataclass(frozen=True)
class Strip:
    """rows: as pictures.json has them, but for `tiles`. tiles: of each row."""

    rows: list[dict[str, Any]]
    tiles: list[Tiles]

    @property
    def columns(self) -> list[str]:
        return [column for column in COLUMNS if any(column in tiles for tiles in self.tiles)]

    @property
    def side(self) -> int:
        """Of a tile, in pixels."""
        return len(self.tiles[0]["sensor"])

    def document(self) -> dict[str, Any]:
        """pictures.json. `tiles` of a row: [left, top] of each in the sprite."""
        height, width = self._size()
        rows = [
            row | {"tiles": {column: list(self._spot(place, column)) for column in tiles}}
            for place, (row, tiles) in enumerate(zip(self.rows, self.tiles, strict=True))
        ]
        size = {"tile": self.side, "width": width, "height": height}
        return {"format": "modalbridge-pictures/1", "file": SPRITE, **size, "rows": rows}

    def sprite(self) -> bytes:
        """pictures.webp: a row a row, a column a column, black where there is nothing."""
        pixels = np.zeros((*self._size(), 3), np.uint8)
        pitch = self.side + 2 * MARGIN
        for place, tiles in enumerate(self.tiles):
            for column, tile in tiles.items():
                left, top = (edge - MARGIN for edge in self._spot(place, column))
                pixels[top : top + pitch, left : left + pitch] = np.pad(
                    tile, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "edge"
                )
        return _webp(pixels)

    def _size(self) -> tuple[int, int]:
        """Height and width of the sprite."""
        pitch = self.side + 2 * MARGIN
        return pitch * len(self.rows), pitch * len(self.columns)

    def _spot(self, place: int, column: str) -> tuple[int, int]:
        """Left and top of a tile."""
        pitch = self.side + 2 * MARGIN
        return pitch * self.columns.index(column) + MARGIN, pitch * place + MARGIN

    def data_uris(self) -> list[dict[str, str]]:
        """The tiles of each row, for a page that asks for nothing from elsewhere."""
        encoded = [{column: b64encode(_webp(tile)).decode() for column, tile in tiles.items()} for tiles in self.tiles]
        return [{column: f"data:image/webp;base64,{tile}" for column, tile in tiles.items()} for tiles in encoded]


@torch.no_grad()
def gather(job: Job, adapted: Adapted, changed: Mapping[str, np.ndarray], labelled: LabelledImages | None) -> Strip | None:
    """As many target images as the job asks for, half as many of the evaluation set and of the held-out pairs, where there are
    any. changed: of `assessment.assess`. None: the job asks for none."""
    most, half = job.spec.pictures, (job.spec.pictures + 1) // 2
    if most == 0:
        return None
    classes = job.spec.source_model.classes
    rows, tiles = _images(job, adapted, "target", job.target, choose(changed["target"], most))
    if labelled is not None:
        index = choose(changed["evaluation"], half)
        more = _images(job, adapted, "evaluation", labelled.images, index)
        for row, label in zip(more[0], labelled.labels[index], strict=True):
            row["truth"] = classes[label]
        rows, tiles = rows + more[0], tiles + more[1]
    if job.pairs is not None:
        more = _pairs(job, adapted, spread(split(job)[1], half))
        rows, tiles = rows + more[0], tiles + more[1]
    return Strip(rows, tiles)


def choose(changed: np.ndarray, most: int) -> np.ndarray:
    """At most `most` images of bool [N], in their order: evenly spread; but if fewer than a third of them are of those whose class the
    adaptation changed, others that are take the places of their neighbours, if there are any."""
    index = spread(np.arange(len(changed)), most)
    lacking = max(0, most // 3 - int(changed[index].sum()))
    for one in spread(np.setdiff1d(np.flatnonzero(changed), index), lacking):
        unchanged = np.flatnonzero(~changed[index])
        index[unchanged[np.abs(index[unchanged] - one).argmin()]] = one
    return np.sort(index)


def answers(models: Mapping[str, Model], x: Tensor, classes: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
    """What each model says of each image of x [n, C, H, W]: its class, and its probability."""
    found: list[dict[str, dict[str, Any]]] = [{} for _ in x]
    for name, model in models.items():
        p, k = model(x)[1].float().softmax(1).max(1)
        for said, confidence, best in zip(found, p.tolist(), k.tolist(), strict=True):
            said[name] = {"class": classes[best], "confidence": round(confidence, 4)}
    return found


def pixels(x: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] -> uint8 [H, W, 3]."""
    return (x.float() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def tile(x: Tensor) -> np.ndarray:
    """[3, size, size] in [0, 1] -> uint8 [side, side, 3]."""
    exact = pixels(x)
    if len(exact) <= LARGEST_TILE:
        return exact
    return np.asarray(Image.fromarray(exact).resize((LARGEST_TILE, LARGEST_TILE), Image.Resampling.BOX))


def _images(job: Job, adapted: Adapted, kind: str, images: Images, index: np.ndarray) -> tuple[list[dict[str, Any]], list[Tiles]]:
    x = to_device(centre_batch(images, index, job.spec.source_model.input.size), job.device)
    said = answers(models_of(job.source, adapted), x, job.spec.source_model.classes)
    rows = [_row(kind, images.names[i], with_adapted(one)) for i, one in zip(index, said, strict=True)]
    return rows, _tiles(adapted, x)


def _pairs(job: Job, adapted: Adapted, index: np.ndarray) -> tuple[list[dict[str, Any]], list[Tiles]]:
    """With the source model's answer to the RGB image, which is what the others are to come near to."""
    both = centre_pairs(job.pairs, index, job.spec.source_model.input.size)
    rgb, x = (to_device(one, job.device) for one in both)
    classes = job.spec.source_model.classes
    said = answers(models_of(job.source, adapted), x, classes)
    of_rgb = answers({"rgb": job.source}, rgb, classes)
    names = [job.pairs.target.names[i] for i in index]
    rows = [_row("pair", name, with_adapted(one) | true) for name, one, true in zip(names, said, of_rgb, strict=True)]
    return rows, [tiles | {"rgb": tile(one)} for tiles, one in zip(_tiles(adapted, x), rgb, strict=True)]


def _tiles(adapted: Adapted, x: Tensor) -> list[Tiles]:
    shown = {"sensor": replicate(x)} | ({"translation": adapted.translator(x)} if adapted.translator is not None else {})
    return [{column: tile(images[i]) for column, images in shown.items()} for i in range(len(x))]


def _row(kind: str, name: str, said: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """name: of a file, which need not be text."""
    return {"kind": kind, "name": readable(name), "truth": None, "answers": said}


def _webp(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True)
    return file.getvalue()
