"""AdaptationSpec: the one contract between client, front end, database, worker and engine.

Imports nothing but pydantic, so that the front end needs no torch and the engine needs no web framework.
The loss weights are the symbols of Zhu, Chen and Wang (arXiv 2401.05014): rec, d, im (TGMB) and kl, feat, self (TGKT);
the others are ours or SOCKET's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

Method = Literal["source_only", "shot", "socket", "socket_tgmb", "tgmb", "tgmb_tgkt"]
WITHOUT_PAIRS: tuple[Method, ...] = ("source_only", "shot")
BASELINES: tuple[Method, ...] = ("shot", "socket", "socket_tgmb")
Modality = Literal["depth", "infrared"]
DataSet = Literal["sunrgbd", "diml", "nirscene"]
DATA_SETS: dict[str, Modality] = {"sunrgbd": "depth", "diml": "depth", "nirscene": "infrared"}
"""What the target sensor of each measures."""
Sensor = Literal["kv1", "kv2", "realsense", "xtion"]
SENSORS: tuple[Sensor, ...] = get_args(Sensor)
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Triple = tuple[float, float, float]


class Strict(BaseModel):
    """Refuses what it does not know; never changes once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


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
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=10_000)
    """The class names in the order of the model's outputs."""
    input: InputSpec = InputSpec()

    @model_validator(mode="after")
    def _classes_differ(self) -> SourceModelDescription:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})[:5]
        if twice:
            raise ValueError(f"class names must differ; named more than once: {', '.join(twice)}")
        return self


class SourceModelId(Strict):
    """A source model that the service already holds."""

    id: str = Field(pattern=r"^model_[0-9a-z]{1,60}$")


class SourceModelFile(SourceModelDescription):
    """A source model on disk: what the engine is given."""

    uri: str = Field(min_length=1, max_length=4096)
    """Path or file:// URI of a safetensors file or a torch state_dict."""


class Scaling(Strict):
    """How raw pixel values of the target sensor become [0, 1]."""

    kind: Literal["auto", "full_range", "millimetres", "range"] = "auto"
    """auto: 8 bit by 255; 16-bit depth as millimetres if nothing exceeds 20 m, else by 65535; 16-bit infrared by the
    1st and 99th percentile. full_range: by 255 or 65535. millimetres: by `high`, 10 m unless given. range: `low` to `high`."""
    low: float | None = Field(None, ge=0)
    high: float | None = Field(None, gt=0)
    no_reading: int | None = Field(None, ge=0, le=65535)
    """The raw value that means "nothing was measured"; such pixels are filled from their neighbours.
    Default: 0 for depth, none for infrared."""

    @model_validator(mode="after")
    def _range_is_whole(self) -> Scaling:
        if self.kind == "range" and (self.low is None or self.high is None):
            raise ValueError("kind 'range' needs both low and high")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be less than high")
        return self


class DataReference(Strict):
    uri: str = Field(min_length=1, max_length=4096)
    sensor: Sensor | None = None
    """Of layout sunrgbd: the camera whose images are meant. Default: all four."""
    depth_folder: FolderName | None = None
    """Of layouts sunrgbd and diml: the folder that holds a view's depth. Default: depth_bfx, and the first of depth_filled,
    up_png, depth_raw and warp_png that is there."""


class ImagesReference(DataReference):
    """A set of images. folder: every image below the folder (for an evaluation set, one folder a class);
    list: a text file with `path` or `path label` a line, relative to the file's own folder; sunrgbd, diml, nirscene: the
    unpacked data set, of which the target images of the model's classes are taken."""

    layout: Literal["folder", "list"] | DataSet = "folder"


class TargetReference(ImagesReference):
    """Unlabelled task-relevant images of the new sensor, x_tr_t."""

    modality: Modality = "depth"
    scaling: Scaling = Scaling()


class PairsReference(DataReference):
    """Task-irrelevant pairs (x_ti_s, x_ti_t): one scene, both sensors, classes outside the task."""

    uri: str = Field(min_length=1, max_length=4096)
    """A folder that holds the two folders named by `source` and `target`, whose images match by relative path without
    the ending; or a CSV file with two columns of those names, paths relative to the file's own folder; or a data set."""
    layout: Literal["pairs"] | DataSet = "pairs"
    """sunrgbd, diml, nirscene: the unpacked data set, of which the pairs outside the model's classes are taken."""
    source: FolderName = "rgb"
    target: FolderName = "depth"
    scaling: Scaling = Scaling()


class DataSpec(Strict):
    target: TargetReference
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


class LossWeights(Strict):
    """Each loss is off at 0: it is then not computed at all."""

    rec: float = Field(1.0, ge=0)
    """L_rec, the translation of a pair against its RGB image. The paper gives it no weight: 1."""
    rec_f: float = Field(1.0, ge=0)
    """L_rec_f, the same in the features of the source model (ours)."""
    d: float = Field(0.01, ge=0)
    """alpha_d of L_D, the adversary that tells translated TI from translated TR features. At 0.1 it outweighs L_rec, whose
    mean square is a few hundredths, and cost 14 points on rendered depth (one seed, an early scene set)."""
    im: float = Field(0.1, ge=0)
    """alpha_im of L_IM, information maximisation on the source model's predictions for translated TR images."""
    bn_s: float = Field(1.0, ge=0)
    """L_BN in stage 1: statistics of translated TR images in the batch norms of the source model against those of the
    images it was trained on, which its running statistics keep (ours)."""
    kl: float = Field(3.0, ge=0)
    """L_KL, teacher on the translated image against student on the raw one. The paper gives it no weight: 1."""
    feat: float = Field(5.0, ge=0)
    """beta_f of L_feat."""
    self: float = Field(0.1, ge=0)
    """beta_self of L_self. SHOT's and SOCKET's: 0.3."""
    im_t: float = Field(0.1, ge=0)
    """L_IM on the target model's own predictions. SHOT's and SOCKET's: 1; the paper's method has none."""
    bn_t: float = Field(3.0, ge=0)
    """L_BN on the target model: statistics of raw target images in its batch norms against the source model's running
    ones. After SOCKET, whose L_d has another scale; the paper's method has none."""


class BridgingSettings(Strict):
    """Stage 1, TGMB: trains the translator T."""

    translator: Literal["residual", "paper"] = "residual"
    """residual: encoder-decoder with a skip from the replicated input, untrained = replicate to 3 channels;
    paper: 1x1 convolution, batch norm, ReLU, 3x3 convolution."""
    steps: int = Field(600, ge=1, le=1_000_000)
    """At most this many; counted in steps, since a few hundred pairs make an epoch of nine."""
    batch_size: int = Field(32, ge=2, le=4096)
    lr: float = Field(1e-3, gt=0, le=10)
    """Of Adam, decayed as (1 + 10 p)^-0.75, p the progress in [0, 1]."""
    held_out: float = Field(0.15, gt=0, le=0.5)
    """Share of the pairs, as one contiguous block, that is never trained on: early stopping and the report use it."""
    validate_every: int = Field(25, ge=1)
    patience: int = Field(8, ge=0)
    """Stop after this many validations without a better one; 0: never stop early."""


class TransferSettings(Strict):
    """Stage 2: trains the target model's extractor f_t."""

    epochs: int = Field(15, ge=1, le=10_000)
    """Default: SOCKET's."""
    batch_size: int = Field(32, ge=2, le=4096)
    """Of target images, and as many pairs. Default: SOCKET's."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Of f_t. sgd: with Nesterov momentum, as SHOT and SOCKET have it."""
    lr: float = Field(3e-4, gt=0, le=10)
    """Decayed as (1 + 10 p)^-0.75, p the progress in [0, 1]."""
    warmup: int = Field(20, ge=0)
    """Steps over which the learning rate comes up from 0."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(1e-3, ge=0, le=1)
    batch_norm: Literal["frozen", "batch"] = "frozen"
    """frozen: f_t normalises by the running statistics of the source model, in training as it will in use; batch: by those
    of the batch, and learns running statistics of its own."""
    feat_distance: Literal["relative", "mean_square"] = "relative"
    """L_feat of tgmb_tgkt. relative: squared, over the squared length of the source features, so that beta_f means the
    same for every network; mean_square: the paper's."""
    kl_by_score: bool = True
    """The weight of L_KL is multiplied by 1 less the score of T, which is 1 where T is no better than replicating and 0 where
    it is perfect: the teacher counts as far as T bridges."""
    kl_by_confidence: bool = True
    """Each image counts in L_KL as 1 - H(p_s) / ln K: a teacher that does not know does not teach."""


PUBLISHED = {"optimizer": "sgd", "lr": 1e-3, "warmup": 0, "momentum": 0.9, "weight_decay": 1e-3, "batch_norm": "batch"}
"""SOCKET's optimiser; of its learning rates that of the backbone, 1e-2 times 0.1."""
Preset = Literal["default", "paper", "socket"]
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {
        "weights": {"rec_f": 0.0, "bn_s": 0.0, "kl": 1.0, "feat": 0.5, "self": 0.3, "im_t": 0.0, "bn_t": 0.0},
        "bridging": {"translator": "paper"},
        "transfer": {"feat_distance": "mean_square", "kl_by_score": False, "kl_by_confidence": False} | PUBLISHED,
    },
    "socket": {
        "weights": {"feat": 0.5, "self": 0.3, "im_t": 1.0, "bn_t": 0.5},
        "transfer": PUBLISHED,
    },
}


class Settings(Strict):
    preset: Preset = "default"
    """Where the settings that are not given come from. paper: the paper's method and nothing more; socket: what SOCKET
    published, which is what shot, socket and socket_tgmb take unless another preset is named."""
    weights: LossWeights = LossWeights()
    bridging: BridgingSettings = BridgingSettings()
    transfer: TransferSettings = TransferSettings()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: the faster of the two on the device at hand, measured on the source model."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("preset"), str):
            return given
        preset = PRESETS.get(given["preset"], {})
        groups = {name: values | given.get(name, {}) for name, values in preset.items() if isinstance(given.get(name, {}), dict)}
        return given | groups


class Adaptation(Strict):
    """What a request and an engine run have in common."""

    name: str | None = Field(None, max_length=200)
    labels: dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}$")], Annotated[str, StringConstraints(max_length=255)]
    ] = Field(default_factory=dict, max_length=32)
    data: DataSpec
    method: Method = "tgmb_tgkt"
    settings: Settings = Settings()
    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"

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


class JobRequest(Adaptation):
    """The body of POST /jobs."""

    source_model: Annotated[
        Annotated[SourceModelId, Tag("SourceModelId")] | Annotated[SourceModelDescription, Tag("SourceModelDescription")],
        Discriminator(_which),
    ]
    """The id of a stored source model, or the description of the file that is sent along."""


class AdaptationSpec(Adaptation):
    """What the engine runs: `python -m worker.adaptation SPEC.json --out DIR`."""

    source_model: SourceModelFile
