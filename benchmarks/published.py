"""The models of a finished run, loaded again from its artifacts, and what they say of the images it adapted to.

The engine evaluates on the held-out set alone; the papers report on the target images themselves (transductive), whose labels
the engine never saw. That column is computed here, afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from app.spec import AdaptationSpec
from worker.adaptation import device, evaluation, source_model, translator
from worker.adaptation.assessment import models_of, with_adapted
from worker.adaptation.data import read_target
from worker.adaptation.evaluation import Model
from worker.adaptation.image_sets import Images
from worker.adaptation.job import Adapted
from worker.adaptation.source_model import Classifier

TOLERANCE = 0.02
"""Of the mean entropy, in nats, between the run's own report and the weights loaded again."""


@dataclass(frozen=True)
class Published:
    source: Classifier
    adapted: Adapted

    def models(self) -> dict[str, Model]:
        """By their names in report.json."""
        return with_adapted(models_of(self.source, self.adapted))


def load(spec: AdaptationSpec, artifacts: Path, where: torch.device) -> Published:
    card = json.loads((artifacts / "model.json").read_text(encoding="utf-8"))
    source, adapted = (
        source_model.load(spec.source_model, path).to(where, memory_format=torch.channels_last)
        for path in (Path(spec.source_model.uri), artifacts / "model.safetensors")
    )
    T, told = None, card["translator"]
    if told is not None:
        T = translator.build(told["kind"], told["channels"])
        T.load_state_dict(load_file(artifacts / "translator.safetensors"))
        T = T.to(where).eval()
    return Published(source, Adapted(adapted, T, told is not None and told["needed"]))


def target_images(spec: AdaptationSpec, folder: Path) -> Images:
    """As the run in `folder` read them: out of its cache where that is still there."""
    return read_target(spec.data, spec.source_model.input, folder / "cache", emit=lambda _: None)


def transductive(spec: AdaptationSpec, folder: Path, classes_of: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Accuracy by model on the images that the run in `folder` adapted to. classes_of: image name -> class. Raises
    RuntimeError where the published weights do not say what the run's own report says of these images."""
    where = device.choose(spec.device)
    images = target_images(spec, folder)
    classes = spec.source_model.classes
    labels = torch.tensor([classes.index(classes_of[name]) for name in images.names])
    report = json.loads((folder / "artifacts/report.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for name, model in load(spec, folder / "artifacts", where).models().items():
        _, logits = evaluation.predict(model, images, spec.source_model.input.size, where)
        _check(name, logits, report["evaluation"]["target"][name]["mean_entropy"])
        found[name] = evaluation.accuracy(logits, labels, classes)
    return found


def _check(name: str, logits: Tensor, reported: float) -> None:
    entropy = evaluation.evidence(logits)["mean_entropy"]
    if abs(entropy - reported) > TOLERANCE:
        raise RuntimeError(f"{name}: the published weights give a mean entropy of {entropy:.3f}, the report says {reported:.3f}")
