"""The sets that the benchmarks run on: where their images are, what the classes are, and the budget of a run.

`nyu` and `drone_ir` lie in a folder of the user's, ROOT, in the layout below; nothing here fetches them. `rendered` is the
demo's set, and is made where it is absent.

    ROOT/nyu/tr_train, tr_test/rgb, depth/<class>/*        NYU Depth v2, scenes, the official split (Silberman et al., 2012)
    ROOT/nyu/ti/rgb, depth/<class>/*                       pairs of other scene classes
    ROOT/drone_ir/tr_train, tr_test/rgb, ir/<class>/*      flying objects, not paired (Svanstrom et al., 2021)
    ROOT/drone_ir/ti/rgb, ir/*                             pairs of road scenes (RoadScene; Xu et al., 2020)
    ROOT/weights/tf_efficientnet_lite0_backbone_fp16.safetensors
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import source, splits

VARIABLE = "MODALBRIDGE_BENCHMARK_DATA"


class MissingDataError(Exception):
    """What is not there, and what to do."""


def class_folder(name: str) -> str:
    return name.split("/", 1)[0]


@dataclass(frozen=True)
class Dataset:
    """target: unlabelled to the engine; class_of gives the class of an image by its name below `target`, for the
    evaluation at the end. twins: the RGB images of `test`, under the same names. backbone: what the source classifier
    sits on; None: it is the demo's ResNet-18, trained from scratch. steps, epochs: of the two stages."""

    name: str
    architecture: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_ratio: float
    modality: str
    rgb_train: Path
    rgb_test: Path
    target: Path
    test: Path
    pairs: Path
    pairs_target: str
    source_epochs: int
    steps: int
    epochs: int
    resize: str = "crop"
    bridging_batch: int = 32
    scaling: dict[str, Any] = field(default_factory=dict)
    twins: Path | None = None
    backbone: Path | None = None
    class_of: Callable[[str], str] = class_folder

    @property
    def source_model(self) -> dict[str, Any]:
        """`source_model` of a specification, but for where the weights are."""
        read = {
            "size": self.size,
            "mean": self.mean,
            "std": self.std,
            "crop_ratio": self.crop_ratio,
            "resize": self.resize,
        }
        return {"architecture": self.architecture, "classes": self.classes, "input": read}

    @property
    def data(self) -> dict[str, Any]:
        """`data` of a specification. What is evaluated is the held-out set."""
        return {
            "target": {"uri": str(self.target), "modality": self.modality, "scaling": self.scaling},
            "pairs": {"uri": str(self.pairs), "target": self.pairs_target, "scaling": self.scaling},
            "evaluation": {"uri": str(self.test)},
        }


def nyu(root: Path | None, work: Path) -> Dataset:
    folder = _folder(root, "nyu", "tr_train/rgb", "tr_train/depth", "tr_test/rgb", "tr_test/depth", "ti/rgb", "ti/depth")
    backbone = folder.parent / "weights/tf_efficientnet_lite0_backbone_fp16.safetensors"
    if not backbone.is_file():
        raise MissingDataError(f"{backbone} is not there: nyu's source classifier sits on that backbone")
    half = (0.5, 0.5, 0.5)
    return Dataset(
        name="nyu",
        architecture="timm/tf_efficientnet_lite0",
        classes=("bathroom", "bedroom", "dining_room", "kitchen", "living_room", "office"),
        size=96,
        mean=half,
        std=half,
        crop_ratio=0.875,
        resize="stretch",  # a scene's edges tell what room it is
        modality="depth",
        rgb_train=folder / "tr_train/rgb",
        rgb_test=folder / "tr_test/rgb",
        target=folder / "tr_train/depth",
        test=folder / "tr_test/depth",
        pairs=folder / "ti",
        pairs_target="depth",
        twins=folder / "tr_test/rgb",
        backbone=backbone,
        source_epochs=0,
        steps=250,
        bridging_batch=16,
        epochs=5,
    )


def drone_ir(root: Path | None, work: Path) -> Dataset:
    folder = _folder(root, "drone_ir", "tr_train/rgb", "tr_train/ir", "tr_test/rgb", "tr_test/ir", "ti/rgb", "ti/ir")
    return Dataset(
        name="drone_ir",
        architecture="torchvision/resnet18",
        classes=("airplane", "bird", "drone", "helicopter"),
        size=source.INPUT,
        mean=source.MEAN,
        std=source.STD,
        crop_ratio=source.INPUT / source.RESIZED,
        modality="infrared",
        rgb_train=folder / "tr_train/rgb",
        rgb_test=folder / "tr_test/rgb",
        target=folder / "tr_train/ir",
        test=folder / "tr_test/ir",
        pairs=folder / "ti",
        pairs_target="ir",
        source_epochs=15,
        steps=250,
        epochs=3,
    )


def rendered(root: Path | None, work: Path) -> Dataset:
    """Always of seed 0: as on the other sets, a seed of the benchmark draws source training and job anew, not the images."""
    folder = work / "rendered-images"
    for split in splits.COUNTS:
        splits.prepare(folder, 0, split)
    return Dataset(
        name="rendered",
        architecture="torchvision/resnet18",
        classes=splits.CLASSES,
        size=source.INPUT,
        mean=source.MEAN,
        std=source.STD,
        crop_ratio=source.INPUT / source.RESIZED,
        modality="depth",
        scaling={"kind": "millimetres", "high": 5000},  # as the demo: its rooms are at most 5 m deep
        rgb_train=folder / "source_rgb",
        rgb_test=folder / "test/rgb",
        target=folder / "target",
        test=folder / "test/depth",
        pairs=folder / "pairs",
        pairs_target="depth",
        twins=folder / "test/rgb",
        class_of=rendered_classes().__getitem__,
        source_epochs=source.Training().epochs,
        steps=300,
        epochs=8,
    )


def rendered_classes() -> dict[str, str]:
    """The name of every target image, which says nothing, -> the class that it was rendered as."""
    names = (splits.file_names(0, "target", index)["depth"] for index in range(splits.COUNTS["target"]))
    return {name: splits.CLASSES[index % len(splits.CLASSES)] for index, name in enumerate(names)}


DATASETS: dict[str, Callable[[Path | None, Path], Dataset]] = {"nyu": nyu, "drone_ir": drone_ir, "rendered": rendered}
"""(ROOT or None, WORK) -> the set. Raises MissingDataError."""


def _folder(root: Path | None, name: str, *needed: str) -> Path:
    if root is None:
        raise MissingDataError(f"{name} needs its images: give the folder that holds {name}/ as --root or in {VARIABLE}")
    folder = (root / name).resolve()
    if missing := [below for below in needed if not (folder / below).is_dir()]:
        raise MissingDataError(f"{folder} lacks {', '.join(missing)}; benchmarks/datasets.py says the layout")
    return folder
