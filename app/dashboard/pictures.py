"""What a page shows of a job's picture strip: pictures.json, and the tiles of pictures.webp, which the browser cuts out itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from app.artifacts.table import Artifact
from app.blobs import Blobs
from app.dashboard import published

JSON, SPRITE = "pictures.json", "pictures.webp"
MOST_ROWS = 64
MOST_PIXELS = 16_384
COLUMNS = {"sensor": "Sensor", "translation": "Translation", "rgb": "RGB"}
KINDS = {
    "target": ("Target images", ", unlabelled"),
    "evaluation": ("Evaluation set", ", labelled"),
    "pair": (
        "Held-out pairs",
        " of other things than the classes: no answer is right, but each should be near the source model's answer to the RGB",
    ),
}
MODELS = ("rgb", "source_only", "bridged", "adapted")
Pixels = Annotated[int, Field(ge=0, le=MOST_PIXELS)]


class Answer(BaseModel):
    name: str = Field(alias="class")
    confidence: float = Field(ge=0, le=1)


class Row(BaseModel):
    kind: Literal["target", "evaluation", "pair"]
    name: str
    truth: str | None
    answers: dict[str, Answer]
    tiles: dict[str, tuple[Pixels, Pixels]]
    """Left and top of each in the sprite."""

    @property
    def changed(self) -> bool:
        """The adaptation changed the answer."""
        before, after = self.answers.get("source_only"), self.answers.get("adapted")
        return before is not None and after is not None and before.name != after.name


class _Document(BaseModel):
    tile: int = Field(ge=1, le=MOST_PIXELS)
    width: Pixels
    height: Pixels
    rows: list[Row] = Field(max_length=MOST_ROWS)

    @model_validator(mode="after")
    def _tiles_lie_inside(self) -> _Document:
        spots = [spot for row in self.rows for spot in row.tiles.values()]
        if any(left + self.tile > self.width or top + self.tile > self.height for left, top in spots):
            raise ValueError("a tile lies beside the sprite")
        return self


@dataclass(frozen=True)
class Group:
    """Rows of one kind, with the columns and the models that any of them has."""

    kind: str
    columns: list[str]
    models: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Strip:
    """tile, width, height: of the sprite, in pixels."""

    tile: int
    width: int
    height: int
    groups: list[Group]


def of_job(blobs: Blobs, artifacts: Sequence[Artifact], asked: Any) -> Strip | str:
    """A text where there is nothing to show: why. asked: `pictures` of the request. Raises BlobsAwayError."""
    found = published.named(artifacts, JSON)
    if found is None:
        return "None were asked for: its request says pictures: 0." if asked == 0 else "It published none."
    if published.named(artifacts, SPRITE) is None:
        return f"It published no {SPRITE}."
    read = published.read(blobs, found, _Document)
    if isinstance(read, str):
        return read
    groups = [_group(kind, rows) for kind in KINDS if (rows := [row for row in read.rows if row.kind == kind])]
    return Strip(read.tile, read.width, read.height, groups) if groups else f"{JSON} has no rows."


def _group(kind: str, rows: list[Row]) -> Group:
    columns = [name for name in COLUMNS if any(name in row.tiles for row in rows)]
    return Group(kind, columns, [name for name in MODELS if any(name in row.answers for row in rows)], rows)
