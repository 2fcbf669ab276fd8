"""Steps of the engine's second stage, timed from outside: its own methods on a job of made images; and the bare compute of their
networks. On the CPU or a GPU, which is waited for at the end of every step that is timed."""

from __future__ import annotations

import copy
import json
import os
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from app.spec import AdaptationSpec
from benchmarks.camera_images import FAR
from worker.adaptation import batch_norm, evaluation, pseudo_labels, source_model
from worker.adaptation.data import read_pairs, read_target
from worker.adaptation.device import Precision, autocast, to_device
from worker.adaptation.events import Phase
from worker.adaptation.image_sets import Images, Pairs
from worker.adaptation.job import Job
from worker.adaptation.journal import Journal
from worker.adaptation.methods import transfer
from worker.adaptation.run import METHODS
from worker.adaptation.source_model import Classifier
from worker.adaptation.translator import Translator, build, replicate

CLASSES = 10


@dataclass(frozen=True)
class Prepared:
    """source, contiguous: the same weights in the engine's memory format and in torch's default one; fresh but for running
    statistics, which are those of RGB images: a step costs the same. decoding_s: seconds an image, by set."""

    files: Path
    folder: Path
    architecture: str
    size: int
    batch_size: int
    device: torch.device
    source: Classifier
    contiguous: Classifier
    T: Translator
    target: Images
    pairs: Pairs
    decoding_s: dict[str, float]

    def spec(self, method: str, precision: Precision) -> AdaptationSpec:
        return spec(self.files, self.architecture, self.size, self.batch_size, self.device, method, precision)


def spec(
    files: Path, architecture: str, size: int, batch_size: int, device: torch.device, method: str, precision: Precision
) -> AdaptationSpec:
    """The method with its default settings, but for one epoch, on camera_images' images in `files`."""
    scaling = {"kind": "millimetres", "high": 2 * FAR}
    document = {
        "source_model": {
            "uri": "made.safetensors",
            "architecture": architecture,
            "classes": [f"class {k}" for k in range(CLASSES)],
            "input": {"size": size},
        },
        "data": {
            "target": {"uri": str(files / "target"), "scaling": scaling},
            "pairs": {"uri": str(files / "pairs"), "scaling": scaling},
        },
        "method": method,
        "settings": {"precision": precision, "transfer": {"epochs": 1, "batch_size": batch_size}},
        "device": device.type,
    }
    return AdaptationSpec.model_validate_json(json.dumps(document))


def prepare(files: Path, folder: Path, architecture: str, size: int, batch_size: int, device: torch.device) -> Prepared:
    """Decodes into `folder`, as a job does when it starts."""
    one = spec(files.resolve(), architecture, size, batch_size, device, "tgmb_tgkt", "fp32")
    input = one.source_model.input
    began = time.perf_counter()
    target = read_target(one.data, input, folder / "cache", emit=lambda _: None)
    between = time.perf_counter()
    pairs = read_pairs(one.data, input, target, folder / "cache", emit=lambda _: None)
    decoding_s = {"target": (between - began) / len(target), "pairs": (time.perf_counter() - between) / len(pairs)}
    torch.manual_seed(0)
    contiguous = source_model.build(architecture, CLASSES, input)
    _settle(contiguous, pairs.source, size)
    contiguous.eval().requires_grad_(False).to(device)
    source = copy.deepcopy(contiguous).to(memory_format=torch.channels_last)
    T = build(one.settings.bridging.translator, target.array.shape[1]).eval().requires_grad_(False).to(device)
    return Prepared(
        files.resolve(), folder, architecture, size, batch_size, device, source, contiguous, T, target, pairs, decoding_s
    )


@torch.no_grad()
def _settle(classifier: Classifier, images: Images, size: int) -> None:
    """Running statistics as a trained source model has: of what it sees."""
    for layer in batch_norm.layers(classifier):
        layer.momentum = None  # the plain average
    classifier.train()
    for part in evaluation.chunks(np.arange(min(len(images), 4 * evaluation.BATCH))):
        classifier(evaluation.centre_batch(images, part, size))
    for layer in batch_norm.layers(classifier):
        layer.momentum = 0.1


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class ClockedJob(Job):
    """ends: when each step of a stage was over, as the stage itself tells its job."""

    ends: list[float] = field(default_factory=list)

    def progress(
        self, phase: Phase, step: int, of: int, rate: float | None, losses: dict[str, float], images_per_s: float | None = None
    ) -> None:
        super().progress(phase, step, of, rate, losses, images_per_s)
        wait_for(self.device)
        self.ends.append(time.perf_counter())


def engine_steps(prepared: Prepared, method: str, precision: Precision, steps: int) -> list[float]:
    """Seconds of `steps` steps of the method's second stage. The first step, which warms up, is not among them, nor the last,
    beside which no further batch is made. Needs target images for steps + 2 batches."""
    images = prepared.batch_size * (steps + 2)
    target = replace(prepared.target, array=prepared.target.array[:images], names=prepared.target.names[:images])
    one = prepared.spec(method, precision)
    module = METHODS[method]
    finished = {"bridging": {"T": prepared.T.state_dict(), "steps": 0, "best_step": 0, "score": 0.0, "relevance": 1.0}}
    silent = os.open(os.devnull, os.O_WRONLY)
    try:
        with closing(Journal(silent, prepared.folder)) as journal:
            work = module.work(one, len(target), len(prepared.pairs))
            job = ClockedJob(
                one,
                prepared.folder,
                journal,
                prepared.device,
                precision,
                prepared.source,
                target,
                prepared.pairs,
                {},
                1e9,
                work,
                finished,
            )
            module.adapt(job)
    finally:
        os.close(silent)
    if len(job.ends) != steps + 2:
        raise RuntimeError(f"{len(job.ends)} steps were told of, not {steps + 2}")
    return [b - a for a, b in zip(job.ends[:-2], job.ends[1:-1], strict=True)]


def engine_labels(prepared: Prepared, precision: Precision, images: int) -> float:
    """Seconds an image of the pass for pseudo-labels, by the engine's own parts."""
    began = time.perf_counter()
    with autocast(prepared.device, precision):
        features, logits = evaluation.predict(
            lambda x: prepared.source(replicate(x)), prepared.target, prepared.size, prepared.device, np.arange(images)
        )
    pseudo_labels.assign(features, logits.softmax(1))
    return (time.perf_counter() - began) / images


def bare_steps(prepared: Prepared, precision: Precision, steps: int) -> list[float]:
    """Seconds of `steps` steps, after one that warms up, of what tgmb_tgkt's default step asks of its networks."""
    s = prepared.spec("tgmb_tgkt", precision).settings.transfer
    n, size = prepared.batch_size, prepared.size
    rgb, ti, replicated = (to_device(torch.rand(n, 3, size, size), prepared.device) for _ in range(3))
    tr = to_device(torch.rand(n, prepared.target.array.shape[1], size, size), prepared.device)
    together = torch.cat([replicated, ti])
    student = copy.deepcopy(prepared.source)
    student.f.requires_grad_(True)
    optimiser = transfer.optimiser_of(student, s)
    student.train()
    if s.batch_norm == "frozen":
        batch_norm.freeze(student)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        with autocast(prepared.device, precision):
            if s.batch_norm == "frozen":  # one pass, as the engine has it
                features, logits = student(together)
                features, logits = features[n:], logits[:n]
            else:
                features, (_, logits) = student(ti)[0], student(replicated)
            with torch.no_grad():  # in one pass, as the engine has it
                prepared.source(torch.cat([rgb, prepared.T(tr)]))
        optimiser.zero_grad()
        (features.float().mean() + logits.float().square().mean()).backward()
        optimiser.step()
        wait_for(prepared.device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]
