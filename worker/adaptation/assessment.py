"""The evaluating phase: source_only, the teacher (the source model, or a calibrated one, behind T), and the adapted model on the same
images."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from worker.adaptation import evaluation
from worker.adaptation.device import to_device
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import Model, centre_pairs, chunks
from worker.adaptation.events import Phase
from worker.adaptation.image_sets import Images, LabelledImages
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods.tgmb import split
from worker.adaptation.source_model import Classifier
from worker.adaptation.translator import replicate

Value = TypeVar("Value")


@dataclass(frozen=True)
class Assessed:
    """figures: target: evidence without labels on the images adapted to; pairs: on the pairs that no stage trained on; labelled:
    accuracy and evidence on the evaluation set, or None. Each by model: source_only, bridged where there is a T, adapted.
    changed: bool [N] of `target`, and of `evaluation` where there is one: the adapted model names another class than source_only."""

    figures: dict[str, Any]
    changed: dict[str, np.ndarray]


def work(phases: Collection[Phase], images: int) -> float:
    """In forward passes of one image: the source model, and what each phase in which the method trains has made."""
    return images * (1 + len({"bridging", "transferring"} & set(phases)))


def assess(job: Job, adapted: Adapted, labelled: LabelledImages | None) -> Assessed:
    """Also records every number as a series `evaluation/...`."""
    done = _Done(job, len(job.target) + (len(labelled.images) if labelled else 0))
    models = models_of(job.source, adapted)
    classes = job.spec.source_model.classes
    logits = _logits(job, models, job.target, done)
    target: dict[str, Any] = {name: evaluation.evidence(values) for name, values in logits.items()}
    changed = {"target": _changed(logits)}
    target["images"] = len(job.target)
    target["changed"] = 1 - evaluation.agreement(logits["source_only"], logits["adapted"])
    student = "bridged" in logits and not adapted.translated
    target["teacher_student_agreement"] = evaluation.agreement(logits["bridged"], logits["adapted"]) if student else None
    found: dict[str, Any] = {"target": target, "pairs": _pairs(job, adapted), "labelled": None}
    if labelled is not None:
        logits = _logits(job, models, labelled.images, done)
        changed["evaluation"] = _changed(logits)
        labels = torch.from_numpy(labelled.labels)
        found["labelled"] = {
            name: evaluation.accuracy(values, labels, classes) | evaluation.evidence(values) for name, values in logits.items()
        } | {"images": len(labels)}
    for series, value in _numbers("evaluation", found):
        job.record(series, job.journal.step, value)
    return Assessed(found, changed)


def models_of(source: Classifier | Ensemble, adapted: Adapted) -> dict[str, Model]:
    """Those that there are: a method that trains no classifier has no `adapted` (see with_adapted)."""

    def behind(classifier: Classifier | Ensemble, translate: Callable[[Tensor], Tensor]) -> Model:
        return lambda x: classifier(translate(x))

    models = {"source_only": behind(source, replicate)}
    if adapted.translator is not None:
        models["bridged"] = behind(adapted.teacher or source, adapted.translator)
    if adapted.classifier is not source and adapted.classifier is not adapted.teacher:
        models["adapted"] = behind(adapted.classifier, adapted.translator if adapted.translated else replicate)
    return models


def with_adapted(by_model: dict[str, Value]) -> dict[str, Value]:
    """A method that trains no classifier publishes one of the other two: not computed twice."""
    return by_model | {"adapted": by_model.get("adapted", by_model.get("bridged", by_model["source_only"]))}


def _logits(job: Job, models: dict[str, Model], images: Images, done: Callable[[int], None]) -> dict[str, Tensor]:
    size = job.spec.source_model.input.size
    return with_adapted(evaluation.predict_logits(models, images, size, job.device, done=done))


def _changed(logits: dict[str, Tensor]) -> np.ndarray:
    return (logits["source_only"].argmax(1) != logits["adapted"].argmax(1)).numpy()


@torch.no_grad()
def _pairs(job: Job, adapted: Adapted) -> dict[str, Any] | None:
    """psnr (dB) and ssim of the RGB image against the replicated and the translated one, mean over the held-out pairs;
    feature_distance between f_s(x_ti_s) and each model's features of x_ti_t, also relative to source_only's."""
    if job.pairs is None:
        return None
    _, held = split(job)
    translates = {"source_only": replicate} | ({"bridged": adapted.translator} if adapted.translator else {})
    models = models_of(job.source, adapted)
    sums: dict[str, dict[str, float]] = {name: {} for name in models}
    for part in chunks(held):
        both = centre_pairs(job.pairs, part, job.spec.source_model.input.size, job.device)
        source, target = (to_device(x, job.device) for x in both)
        f_s, _ = job.source(source)
        for name, model in models.items():
            measured = {"feature_distance": evaluation.feature_distance(f_s, model(target)[0])}
            if name in translates:
                translated = translates[name](target)
                measured["psnr"] = evaluation.psnr(translated, source).mean().item()
                measured["ssim"] = evaluation.ssim(translated, source).mean().item()
            for key, value in measured.items():
                sums[name][key] = sums[name].get(key, 0.0) + value * len(part) / len(held)
    before = max(sums["source_only"]["feature_distance"], 1e-12)
    for values in sums.values():
        values["feature_distance_ratio"] = values["feature_distance"] / before
    return {"held_out": len(held), **with_adapted(sums)}


def _numbers(prefix: str, found: dict[str, Any]) -> list[tuple[str, float]]:
    """Every number in nested dicts as (path with slashes, value)."""
    numbers: list[tuple[str, float]] = []
    for key, value in found.items():
        if isinstance(value, dict) and key != "per_class":
            numbers += _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, float):
            numbers.append((f"{prefix}/{key}", value))
    return numbers


class _Done:
    """Tells the job's progress how many images have been through a model."""

    def __init__(self, job: Job, images: int) -> None:
        self.job, self.images, self.began = job, 0, time.monotonic()
        self.of = max(1, round(work(job.work.keys(), images)))

    def __call__(self, images: int) -> None:
        self.images += images
        elapsed = time.monotonic() - self.began
        rate = self.images / elapsed if elapsed > 0 else None
        self.job.progress("evaluating", min(self.images, self.of), self.of, rate, {}, rate)
