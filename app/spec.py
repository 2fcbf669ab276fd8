"""AdaptationSpec: the one contract between client, front end, database, worker and engine.

Imports nothing but pydantic, so that the front end needs no torch and the engine needs no web framework.
"""

from __future__ import annotations

import difflib
from collections import Counter
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.method_settings import Settings, Strict

Method = Literal["source_only", "shot", "socket", "socket_tgmb", "tgmb", "tgmb_tgkt"]
WITHOUT_PAIRS: tuple[Method, ...] = ("source_only", "shot")
BASELINES: tuple[Method, ...] = ("shot", "socket", "socket_tgmb")
Modality = Literal["depth", "infrared"]
DataSet = Literal["sunrgbd", "diml", "nirscene"]
DATA_SETS: dict[str, Modality] = {"sunrgbd": "depth", "diml": "depth", "nirscene": "infrared"}
"""What the target sensor of each measures."""
Sensor = Literal["kv1", "kv2", "realsense", "xtion"]
SENSORS: tuple[Sensor, ...] = get_args(Sensor)
Format = Literal["safetensors", "torch_export", "onnx"]
FORMATS: dict[Format, str] = {"safetensors": "model.safetensors", "torch_export": "model.pt2", "onnx": "model.onnx"}
"""What an adapted model can be published as, and the artifact that it then is."""
LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
"""No control character and no line break: a name stands in a row of lists, a label in a line of a form. Asked for of what is new alone
(app.problems.in_one_line), as databases may hold others."""
MOST_LABELS = 32
"""Of one job."""
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Triple = tuple[float, float, float]


class InputSpec(Strict):
    """What the source model was fed at its evaluation: the adapted model is fed the same."""

    size: int = Field(224, ge=16, le=1024)
    """Height and width of the square input, in pixels."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Subtracted from RGB in [0, 1]. Default: ImageNet's, as torchvision's weights expect."""
    std: Triple = (0.229, 0.224, 0.225)
    """Divides what is left. Default: ImageNet's."""
    resize: Literal["crop", "stretch"] = "crop"
    """crop: the shorter side is resized to size / crop_ratio and the centre cut out, as torchvision and timm do;
    stretch: both sides are resized to size / crop_ratio whatever the aspect ratio, as SHOT does; then the centre."""
    crop_ratio: float = Field(0.875, gt=0.3, le=1.0)
    """size over the resized shorter side. Default: 224 / 256."""

    @model_validator(mode="after")
    def _std_is_positive(self) -> InputSpec:
        if min(self.std) <= 0:
            raise ValueError("every std must be greater than 0")
        return self


class SourceModelDescription(Strict):
    """How to read the weights: the file itself says nothing of these."""

    architecture: str = Field(pattern=r"^(torchvision|timm|shot)/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$", max_length=120)
    """`torchvision/<name>` or `timm/<name>`: a classifier that this library builds by name and class count. `shot/<name>`: a
    torchvision ResNet of this name with bottleneck and classifier, as SHOT and SOCKET save it (netF, netB, netC)."""
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=10_000, fail_fast=True)
    """The class names in the order of the model's outputs."""
    input: InputSpec = InputSpec()
    """What it was fed at its evaluation."""

    @model_validator(mode="after")
    def _classes_differ(self) -> SourceModelDescription:
        twice = sorted(name for name, times in Counter(self.classes).items() if times > 1)[:5]
        if twice:
            raise ValueError(f"class names must differ; named more than once: {', '.join(twice)}")
        return self


def misfit(first: SourceModelDescription, further: SourceModelDescription) -> str | None:
    """Why two source models cannot be adapted together, or None. The order of the classes may differ."""
    if set(first.classes) != set(further.classes):
        odd = sorted(set(first.classes) ^ set(further.classes))
        return f"source models of one job must have the same classes; only one of the two has: {', '.join(odd[:5])}"
    for field in ("size", "resize", "crop_ratio"):
        one, other = getattr(first.input, field), getattr(further.input, field)
        if one != other:
            return f"source models of one job must have the same input.{field}; this one has {other}, the first {one}"
    return None


class SourceModelId(Strict):
    """A source model that the service already holds."""

    id: str = Field(pattern=r"^model_[0-9a-z]{1,60}$")
    """As the upload answered it: `model_...`."""


class SourceModelFile(SourceModelDescription):
    """A source model on disk: what the engine is given."""

    uri: str = Field(min_length=1, max_length=4096)
    """Path or file:// URI of a safetensors file or a torch state_dict."""


class Scaling(Strict):
    """How raw pixel values of the target sensor become [0, 1]."""

    kind: Literal["auto", "full_range", "millimetres", "range"] = "auto"
    """auto: 8 bit by 255; 16-bit depth as millimetres if nothing exceeds 20 m, else by 65535; 16-bit infrared by the
    1st and 99th percentile. full_range: by 255 or 65535. millimetres: by `high`, 10 m unless given. range: `low` to `high`."""
    low: float | None = Field(None, allow_inf_nan=False)
    """Of kind range and millimetres: the raw value that becomes 0. Below 0 for kind range alone."""
    high: float | None = Field(None, allow_inf_nan=False)
    """The raw value that becomes 1."""
    no_reading: int | None = Field(None, ge=-65535, le=65535)
    """The raw value that means "nothing was measured"; such pixels are filled from their neighbours.
    Default: 0 for depth, none for infrared."""

    @model_validator(mode="after")
    def _range_is_whole(self) -> Scaling:
        if self.kind == "range" and (self.low is None or self.high is None):
            raise ValueError("kind 'range' needs both low and high")
        if self.kind != "range" and ((self.low or 0) < 0 or (self.high is not None and self.high <= 0)):
            raise ValueError("low below 0, and high that is not above 0, need kind 'range'")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be less than high")
        return self


class DataReference(Strict):
    uri: str = Field(min_length=1, max_length=4096)
    """`file://` below an opened folder, `dataset://` and the id of an uploaded archive, `s3://` and an opened bucket, or `https://` and an
    archive on an opened host."""
    sensor: Sensor | None = None
    """Of layout sunrgbd: the camera whose images are meant. Default: all four."""
    depth_folder: FolderName | None = None
    """Of layouts sunrgbd and diml: the folder that holds a view's depth. Default: depth_bfx, and the first of depth_filled,
    up_png, depth_raw and warp_png that is there."""


class ImagesReference(DataReference):
    """A set of images. folder: every image below the folder (for an evaluation set, one folder a class);
    list: a text file with `path` or `path label` a line, relative to the file's own folder; webdataset: samples
    of `key.jpg` and, for an evaluation set, `key.cls`; sunrgbd, diml, nirscene: the
    unpacked data set, of which the target images of the model's classes are taken."""

    layout: Literal["folder", "list", "webdataset", DataSet] = "folder"
    """How the images lie there."""


class TargetReference(ImagesReference):
    """Unlabelled task-relevant images of the new sensor, x_tr_t."""

    modality: Modality = "depth"
    """What the sensor measures."""
    scaling: Scaling = Scaling()
    """Of its raw values."""


class PairsReference(DataReference):
    """Task-irrelevant pairs (x_ti_s, x_ti_t): one scene, both sensors, classes outside the task."""

    uri: str = Field(min_length=1, max_length=4096)
    """A folder that holds the two folders named by `source` and `target`, whose images match by relative path without
    the ending; or a CSV file with two columns of those names, paths relative to the file's own folder; or a data set."""
    layout: Literal["pairs", "webdataset", DataSet] = "pairs"
    """webdataset: samples of `key.<source>.png` and `key.<target>.png`. sunrgbd, diml, nirscene: the unpacked data set, of which the pairs outside the model's classes are taken."""
    source: FolderName = "rgb"
    """Of layout pairs and webdataset: the name of the RGB images' folder, column or ending."""
    target: FolderName = "depth"
    """The same of the new sensor's images."""
    scaling: Scaling = Scaling()
    """Of the new sensor's raw values in the pairs."""


class DataSpec(Strict):
    target: TargetReference
    """What is adapted to."""
    pairs: PairsReference | None = None
    """Needed by every method but source_only and shot."""
    evaluation: ImagesReference | None = None
    """Labelled target images, optional: looked at once, at the end; nothing is trained on them or chosen by them."""
    broken_image_share: float = Field(0.1, ge=0, le=1)
    """An unreadable image is counted, named and left out; more than this share of a set fails the job."""

    @model_validator(mode="after")
    def _fields_fit_the_layout(self) -> DataSpec:
        for name in ("target", "pairs", "evaluation"):
            reference: ImagesReference | PairsReference | None = getattr(self, name)
            if reference is None:
                continue
            measures = DATA_SETS.get(reference.layout)
            if measures not in (None, self.target.modality):
                _fault("/data/target/modality", f"layout '{reference.layout}' of data.{name} holds {measures} images")
            if reference.sensor is not None and reference.layout != "sunrgbd":
                _fault(f"/data/{name}/sensor", f"layout '{reference.layout}' knows no sensors; only sunrgbd does")
            if reference.depth_folder is not None and measures != "depth":
                _fault(f"/data/{name}/depth_folder", f"layout '{reference.layout}' has none; only sunrgbd and diml do")
        return self


def _fault(pointer: str, message: str) -> NoReturn:
    raise PydanticCustomError("reference", "{message}", {"message": message, "pointer": pointer})


def _known_format(given: Any) -> Any:
    if isinstance(given, str) and given not in FORMATS:
        near = difflib.get_close_matches(given.lower(), FORMATS, n=1, cutoff=0.4)
        hint = f"the nearest known one is {near[0]!r}" if near else f"known are {', '.join(FORMATS)}"
        raise PydanticCustomError("unknown_output", "{message}", {"message": f"no such output; {hint}"})
    return given


class Export(Strict):
    """How the outputs torch_export and onnx are made."""

    normalize_in_graph: bool = False
    """false: they take what the safetensors model takes, images that are normalised already; true: images in [0, 1], whose mean and
    std they see to themselves. Several source models, and a model behind its translator, always take [0, 1]."""


class Adaptation(Strict):
    """What a request and an engine run have in common."""

    name: str | None = Field(None, max_length=200, json_schema_extra={"pattern": LINE})
    """For people: lists and reports show it."""
    labels: dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}$")],
        Annotated[str, Field(max_length=255, json_schema_extra={"pattern": LINE})],
    ] = Field(default_factory=dict, max_length=MOST_LABELS)
    """Lists are narrowed down by them."""
    priority: int = Field(0, ge=-100, le=100)
    """Of the queued jobs of one tenant, or of one value of the label that the service's `queue_label` names, those of higher priority
    are taken first. Between tenants, or between such values, it decides nothing: they take turns."""
    data: DataSpec
    """Where the images lie. Nothing of them is sent along."""
    method: Method = "tgmb_tgkt"
    """tgmb_tgkt: translator and target model; tgmb: the translator alone; source_only: the source model as it is; shot, socket,
    socket_tgmb: what others published, to compare with."""
    settings: Settings = Settings()
    """Of the method."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order, crops and initial weights follow from it: the same request with the same seed gives, on one CPU, the same weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where the worker has one. cuda: only a worker with a GPU takes the job."""
    outputs: tuple[Annotated[Format, BeforeValidator(_known_format)], ...] = Field(
        ("safetensors",), max_length=16, fail_fast=True
    )
    """What the adapted model is published as; safetensors always is. torch_export: model.pt2, a program that torch alone loads; onnx:
    model.onnx. One that cannot be made, or does not answer as the adapted model does, is left out with a warning."""
    export: Export = Export()
    """Of the outputs torch_export and onnx."""
    pictures: int = Field(6, ge=0, le=16)
    """How many target images the report and the dashboard show, with their translations and the models' answers; and half as many of
    the evaluation set and of the held-out pairs. They are published with the job, as pictures.webp and within report.html; 0: none."""

    @field_validator("outputs")
    @classmethod
    def _each_output_once(cls, given: tuple[Format, ...]) -> tuple[Format, ...]:
        return tuple(name for name in FORMATS if name == "safetensors" or name in given)

    @model_validator(mode="after")
    def _something_is_exported(self) -> Adaptation:
        if self.export != Export() and self.outputs == ("safetensors",):
            _fault("/export", "this says how torch_export and onnx are made, and outputs names neither of them")
        return self

    @model_validator(mode="before")
    @classmethod
    def _baselines_as_published(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("method") not in BASELINES:
            return given
        settings = given.get("settings", {})
        return given | {"settings": {"preset": "socket"} | settings} if isinstance(settings, dict) else given

    @model_validator(mode="after")
    def _pairs_where_needed(self) -> Adaptation:
        if self.method not in WITHOUT_PAIRS and self.data.pairs is None:
            message = f"method '{self.method}' needs data.pairs; only {' and '.join(WITHOUT_PAIRS)} do without"
            raise PydanticCustomError("pairs_missing", "{message}", {"message": message, "pointer": "/data/pairs"})
        return self


def _which(value: object) -> str:
    """Told apart by the `id`, so that an error speaks of the one that was meant."""
    by_id = "id" in value if isinstance(value, dict) else isinstance(value, SourceModelId)
    return "SourceModelId" if by_id else "SourceModelDescription"


MOST_FURTHER = 7


class JobRequest(Adaptation):
    """The body of POST /jobs."""

    source_model: Annotated[
        Annotated[SourceModelId, Tag("SourceModelId")] | Annotated[SourceModelDescription, Tag("SourceModelDescription")],
        Discriminator(_which),
    ]
    """The id of a stored source model, or the description of the file that is sent along."""
    further_source_models: tuple[SourceModelId, ...] = Field((), max_length=MOST_FURTHER, fail_fast=True)
    """Stored source models for the same classes, and the same input but for mean and std, that are adapted together with the first: what is
    published is all of them, and answers with a weighted sum of their logits (`settings.transfer.mixing`)."""

    @model_validator(mode="after")
    def _models_differ(self) -> JobRequest:
        ids = [model.id for model in (self.source_model, *self.further_source_models) if isinstance(model, SourceModelId)]
        for place, model in enumerate(self.further_source_models):
            if ids.count(model.id) > 1:
                _fault(f"/further_source_models/{place}/id", f"{model.id} is named more than once")
        return self


class Fetched(Strict):
    """Where on this machine's disk a reference's data lie that were elsewhere."""

    path: str = Field(min_length=1, max_length=4096)
    version: str = Field(min_length=1, max_length=200)
    """What was fetched, by its content: told in the report."""


class AdaptationSpec(Adaptation):
    """What the engine runs: `python -m worker.adaptation SPEC.json --out DIR`."""

    source_model: SourceModelFile
    further_source_models: tuple[SourceModelFile, ...] = Field((), max_length=MOST_FURTHER)
    fetched: dict[str, Fetched] = Field(default_factory=dict)
    """By the `uri` of the reference in `data`."""

    @model_validator(mode="after")
    def _models_fit(self) -> AdaptationSpec:
        for place, model in enumerate(self.further_source_models):
            if (why := misfit(self.source_model, model)) is not None:
                _fault(f"/further_source_models/{place}", why)
        return self
