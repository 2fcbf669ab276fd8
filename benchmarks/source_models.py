"""The source classifier of (data set, seed): trained on labelled RGB, kept, and the same for every method.

A linear classifier on a frozen backbone where the set has one, else trained from scratch as the demo trains its own. Label smoothing 0.1 in
both, as SHOT and SOCKET train their source models. Nothing else in the benchmarks reads the labelled RGB that it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.spec import DataSpec, InputSpec, SourceModelFile
from benchmarks.datasets import Dataset, class_folder
from demo import source as from_scratch
from worker.adaptation import device, evaluation, source_model
from worker.adaptation.artifacts import sha256
from worker.adaptation.data import read_target
from worker.adaptation.image_sets import Images
from worker.adaptation.randomness import generator, seed_torch
from worker.adaptation.transforms import apply, random_crops

VIEWS = 4
SMOOTHING = 0.1


@dataclass(frozen=True)
class Source:
    """weights: a safetensors file. accuracy, balanced_accuracy: on the held-out RGB images."""

    weights: Path
    sha256: str
    accuracy: float
    balanced_accuracy: float


def source(dataset: Dataset, seed: int, folder: Path) -> Source:
    """Trains it unless folder holds it."""
    made_of = _made_of(dataset, seed)
    weights = folder / f"source-{seed}-{made_of[:8]}.safetensors"
    known = weights.with_suffix(".json")
    if not known.is_file():
        images, labels = read(dataset.rgb_train, dataset, folder / "cache/rgb-train")
        tensors = head_on_backbone(dataset, images, labels, seed) if dataset.backbone else scratch(dataset, images, labels, seed)
        save_file(tensors, weights)
        found = _on_rgb(dataset, weights, folder / "cache/rgb-test")
        _write(known, {"seed": seed, "accuracy": found["accuracy"], "balanced_accuracy": found["balanced_accuracy"]})
    told = json.loads(known.read_text())
    return Source(weights, sha256(weights), told["accuracy"], told["balanced_accuracy"])


def rgb_images(folder: Path, input: InputSpec, cache: Path) -> Images:
    """RGB images as the engine would read and store them."""
    reference = {"uri": str(folder), "modality": "infrared", "scaling": {"kind": "full_range"}}  # no value means "no reading"
    cache.mkdir(parents=True, exist_ok=True)
    return read_target(DataSpec.model_validate({"target": reference}), input, cache, emit=lambda _: None)


def read(folder: Path, dataset: Dataset, cache: Path) -> tuple[Images, Tensor]:
    """folder/<class>/*, RGB; labels int64 [N]."""
    images = rgb_images(folder, _file(dataset, "unused").input, cache)
    return images, torch.tensor([dataset.classes.index(class_folder(name)) for name in images.names])


def head_on_backbone(dataset: Dataset, images: Images, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """The state_dict: dataset.backbone as it is, in eval mode, and a last layer learned on its features of random windows and
    flips. On the 590 images of nyu, fine-tuning the whole network loses 10 points on held-out RGB; most of it to batch norm,
    whose statistics of so few images are worse than the backbone's own."""
    description = _file(dataset, "unused")
    classifier = source_model.build(dataset.architecture, len(dataset.classes), description.input)
    classifier = classifier.to(memory_format=torch.channels_last).eval()
    classifier.f.load_state_dict({name: value.float() for name, value in load_file(dataset.backbone).items()})
    parts = []
    with torch.inference_mode():
        for epoch in range(VIEWS):
            for number, index in enumerate(evaluation.chunks(np.arange(len(images)))):
                x = images.batch(index)
                crops = random_crops(generator(seed, "benchmark/source", epoch, number), len(x), *x.shape[-2:], dataset.size)
                parts.append(classifier(apply(x, crops, dataset.size).contiguous(memory_format=torch.channels_last))[0])
    f = torch.cat(parts).clone()
    mean, deviation = f.mean(0), f.std(0) + 1e-3
    seed_torch(seed, "benchmark/source/head", 0)
    head = torch.nn.Linear(f.shape[1], len(dataset.classes))
    adam = torch.optim.Adam(head.parameters(), 1e-3, weight_decay=0.1)
    for _ in range(600):
        loss = F.cross_entropy(head((f - mean) / deviation), labels.repeat(VIEWS), label_smoothing=SMOOTHING)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        classifier.h.weight.copy_(head.weight / deviation)
        classifier.h.bias.copy_(head.bias - (head.weight / deviation) @ mean)
    return source_model.weights(classifier)


def scratch(dataset: Dataset, images: Images, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """The state_dict of the demo's ResNet-18, trained by its recipe."""
    how = from_scratch.Training(epochs=dataset.source_epochs, label_smoothing=SMOOTHING)
    network = from_scratch.train(
        torch.from_numpy(np.array(images.array)), labels, len(dataset.classes), seed, how, device=device.choose("auto")
    )
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def _on_rgb(dataset: Dataset, weights: Path, cache: Path) -> dict[str, Any]:
    images, labels = read(dataset.rgb_test, dataset, cache)
    where = device.choose("auto")
    classifier = source_model.load(_file(dataset, str(weights)), weights).to(where)
    _, logits = evaluation.predict(classifier, images, dataset.size, where)
    return evaluation.accuracy(logits, labels, dataset.classes)


def _file(dataset: Dataset, uri: str) -> SourceModelFile:
    return SourceModelFile.model_validate({**dataset.source_model, "uri": uri})


def _made_of(dataset: Dataset, seed: int) -> str:
    """A digest of what decides the weights: the set, the recipe, this program."""
    programs = [Path(file).read_bytes() for file in (__file__, from_scratch.__file__)]
    how = [seed, dataset.name, dataset.source_model, dataset.source_epochs, dataset.backbone and dataset.backbone.name]
    images = sorted(path.relative_to(dataset.rgb_train).as_posix() for path in dataset.rgb_train.rglob("*.*"))
    document = json.dumps([how, images, asdict(from_scratch.Training())])
    return hashlib.sha256(b"\0".join([document.encode(), *programs])).hexdigest()


def _write(path: Path, document: dict[str, Any]) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(document))
    aside.replace(path)
