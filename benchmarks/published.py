"""The models of a finished run, loaded again from its artifacts, and what they say of the images it adapted to.

The engine evaluates on the held-out set alone; the papers report on the target images themselves (transductive), whose labels
the engine never saw. That column is computed here, afterwards.
"""

from __future__ import annotations

import copy
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
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.evaluation import Model
from worker.adaptation.image_sets import Images
from worker.adaptation.job import Adapted
from worker.adaptation.methods import calibration
from worker.adaptation.source_model import Classifier

TOLERANCE = 0.02
"""Of the mean entropy, in nats, between the run's own report and the weights loaded again."""


@dataclass(frozen=True)
class Published:
    source: Classifier | Ensemble
    adapted: Adapted

    def models(self) -> dict[str, Model]:
        """By their names in report.json."""
        return with_adapted(models_of(self.source, self.adapted))


def load(spec: AdaptationSpec, artifacts: Path, target: Images, where: torch.device) -> Published:
    """target: of `target_images`."""
    card = json.loads((artifacts / "model.json").read_text(encoding="utf-8"))
    files = (spec.source_model, *spec.further_source_models)
    members, weights = [source_model.load(file, Path(file.uri)) for file in files], artifacts / "model.safetensors"
    if len(members) == 1:
        source, adapted = members[0], source_model.load(spec.source_model, weights)
    else:
        source = Ensemble(members)
        adapted = _adapted(source, load_file(weights), [told["weight"] for told in card["members"]])
    source, adapted = (model.to(where, memory_format=torch.channels_last) for model in (source, adapted))
    T, told = None, card["translator"]
    if told is not None:
        T = translator.build(told["kind"], told["channels"])
        T.load_state_dict(load_file(artifacts / "translator.safetensors"))
        T = T.to(where).eval()
    teacher = None
    if json.loads((artifacts / "report.json").read_text(encoding="utf-8"))["stages"].get("bridging", {}).get("calibrated"):
        # Published by tgmb; of tgmb_tgkt it was the teacher alone, and can be made anew.
        teacher = adapted if spec.method == "tgmb" else calibration.calibrated(source, T, target, spec, where)
    return Published(source, Adapted(adapted, T, told is not None and told["needed"], teacher))


def _adapted(source: Ensemble, tensors: dict[str, Tensor], mixing: list[float]) -> Ensemble:
    """tensors: of each member behind its place. Every h is as it was."""
    adapted = copy.deepcopy(source)
    for m, member in enumerate(adapted.members):
        own = {name.removeprefix(f"{m}."): value for name, value in tensors.items() if name.startswith(f"{m}.")}
        member.f.load_state_dict({name: value for name, value in own.items() if not name.startswith(f"{member.head}.")})
    with torch.no_grad():
        adapted.mixing.copy_(torch.tensor(mixing).log())
    return adapted


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
    for name, model in load(spec, folder / "artifacts", images, where).models().items():
        _, logits = evaluation.predict(model, images, spec.source_model.input.size, where)
        _check(name, logits, report["evaluation"]["target"][name]["mean_entropy"])
        found[name] = evaluation.accuracy(logits, labels, classes)
    return found


def _check(name: str, logits: Tensor, reported: float) -> None:
    entropy = evaluation.evidence(logits)["mean_entropy"]
    if abs(entropy - reported) > TOLERANCE:
        raise RuntimeError(f"{name}: the published weights give a mean entropy of {entropy:.3f}, the report says {reported:.3f}")
