"""A job request as types, for editors that complete names. A plain dict with the same names is as good.

What is None is left out, so that the service's own default holds; the service checks, and says what is wrong and where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Input:
    """What the source model was fed at its evaluation. size: height and width in pixels."""

    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: Literal["crop", "stretch"] | None = None
    crop_ratio: float | None = None


@dataclass(frozen=True)
class SourceModelDescription:
    """How to read a file of weights. architecture: `torchvision/<name>`, `timm/<name>` or `shot/<name>`. classes: in the order
    of the model's outputs."""

    architecture: str
    classes: Sequence[str]
    input: Input | None = None


@dataclass(frozen=True)
class StoredSourceModel:
    """One that the service holds, to be adapted together with the job's own."""

    id: str


@dataclass(frozen=True)
class Scaling:
    """How raw pixel values become [0, 1]."""

    kind: Literal["auto", "full_range", "millimetres", "range"] | None = None
    low: float | None = None
    high: float | None = None
    no_reading: int | None = None


@dataclass(frozen=True)
class Images:
    """A set of images, as the service's machine sees it: an evaluation set."""

    uri: str
    layout: str | None = None
    sensor: str | None = None
    depth_folder: str | None = None


@dataclass(frozen=True)
class Target(Images):
    """Unlabelled images of the new sensor."""

    modality: Literal["depth", "infrared"] | None = None
    scaling: Scaling | None = None


@dataclass(frozen=True)
class Pairs(Images):
    """Pairs of one scene by both sensors. source, target: the names of their folders."""

    source: str | None = None
    target: str | None = None
    scaling: Scaling | None = None


@dataclass(frozen=True)
class Data:
    target: Target
    pairs: Pairs | None = None
    evaluation: Images | None = None
    broken_image_share: float | None = None


@dataclass(frozen=True)
class Export:
    """How torch_export and onnx are made. normalize_in_graph: they take images in [0, 1]."""

    normalize_in_graph: bool | None = None


@dataclass(frozen=True)
class JobRequest:
    """settings: a mapping, as the service's page of the API has it. source_model may be left out where `submit` is given the
    id of a stored one. pictures: how many target images are published for the report and the dashboard; 0: none."""

    data: Data
    source_model: SourceModelDescription | None = None
    further_source_models: Sequence[StoredSourceModel] | None = None
    name: str | None = None
    labels: Mapping[str, str] | None = None
    priority: int | None = None
    method: str | None = None
    settings: Mapping[str, Any] | None = None
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    outputs: Sequence[Literal["safetensors", "torch_export", "onnx"]] | None = None
    export: Export | None = None
    pictures: int | None = None


def as_document(value: Any) -> Any:
    """A request, or any part of one, as what JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        members = ((one.name, getattr(value, one.name)) for one in fields(value))
        return {name: as_document(member) for name, member in members if member is not None}
    if isinstance(value, Mapping):
        return {name: as_document(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [as_document(member) for member in value]
    return value
