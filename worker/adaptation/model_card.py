"""model.json: what the published weights are, and how to use them with torch, torchvision or timm alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.adaptation import preprocessing, shot_checkpoint
from worker.adaptation.ensemble import Ensemble
from worker.adaptation.image_sets import Images
from worker.adaptation.job import Adapted, Job
from worker.adaptation.scaling import readings_of
from worker.adaptation.source_model import Classifier

IN_0_TO_1 = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def describe(job: Job, adapted: Adapted, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """files: name, sha256 and bytes of `model` and, where there is one, `translator`."""
    source, input = job.spec.source_model, job.spec.source_model.input
    members = list(adapted.classifier.members)
    return {
        "format": "modalbridge-model/1",
        "architecture": " + ".join(member.architecture for member in members),
        "classes": list(source.classes),
        "head": members[0].head if len(members) == 1 else None,
        "members": _members(adapted.classifier),
        "weights": files["model"] | {"dtype": "float32", "changed": adapted.classifier is not job.source},
        "translator": _translator(job, adapted, files),
        "input": input.model_dump(mode="json") | {"channels": 3} | (IN_0_TO_1 if len(members) > 1 else {}),
        "sensor": sensor(job, job.target, adapted.translated),
        "load": loading(adapted.classifier, input.size),
        "method": job.spec.method,
        "seed": job.spec.seed,
        "settings": job.spec.settings.model_dump(mode="json"),
    }


def _members(model: Classifier | Ensemble) -> list[dict[str, Any]] | None:
    """Of several source models: what each is, and how much it counts."""
    if isinstance(model, Classifier):
        return None
    return [
        {
            "prefix": f"{m}.",
            "weight": weight,
            "architecture": member.architecture,
            "head": member.head,
            "mean": _triple(member.mean),
            "std": _triple(member.std),
        }
        for m, (member, weight) in enumerate(zip(model.members, model.weights(), strict=True))
    ]


def _triple(values: Tensor) -> list[float]:
    """Of a mean or std, in decimals as they were given."""
    return [float(f"{value:.7g}") for value in values.flatten().tolist()]


def sensor(job: Job, target: Images, translated: bool) -> dict[str, Any]:
    """How a raw image of the sensor becomes the input."""
    reference, range = job.spec.data.target, target.range
    return {
        "modality": reference.modality,
        "channels": target.array.shape[1],
        "bits": range.bits,
        "offset": range.offset,
        "gain": range.gain,
        "low": range.low,
        "high": range.high,
        "no_reading": readings_of(reference.scaling, reference.modality).no_reading,
        "steps": [step["words"] for step in preprocessing.steps(job, translated)],
    }


def _translator(job: Job, adapted: Adapted, files: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    T = adapted.translator
    if T is None:
        return None
    needed = adapted.translated
    if not needed:
        note = "A by-product: the adapted model is fed x itself, not T(x)."
    elif adapted.classifier is adapted.teacher and adapted.teacher is not job.source:
        note = "The source model with its batch norms calibrated to the sensor, nothing of it trained; it must be fed T(x) in place of x."
    elif adapted.classifier is job.source:
        note = "The weights are the source model's, unchanged: it adapts to the sensor by being fed T(x) in place of x."
    else:
        note = "The model was adapted behind T, and must be fed T(x) in place of x."
    kind = job.spec.settings.bridging.translator
    return files["translator"] | {
        "kind": kind,
        "needed": needed,
        "note": note,
        "channels": job.target.array.shape[1],
        "layers": str(T),
        "load": [
            "import safetensors.torch; from worker.adaptation import translator",
            f"T = translator.build({kind!r}, channels={job.target.array.shape[1]})",
            'T.load_state_dict(safetensors.torch.load_file("translator.safetensors"))',
            "T.eval()  # images of the sensor [N, C, H, W] in [0, 1] -> RGB [N, 3, H, W] in [0, 1]",
        ],
    }


def loading(model: Classifier | Ensemble, size: int) -> list[str]:
    """A few lines of Python that load model.safetensors as `model` with torch, the library and safetensors alone. Of several
    source models it takes RGB in [0, 1] and does their normalising itself."""
    if isinstance(model, Classifier):
        imports, *build = _building(model, size)
        load = 'model.load_state_dict(load_file("model.safetensors"))'
        return [f"{imports}; from safetensors.torch import load_file", *build, load, "model.eval()"]
    lines = ["import torch; from safetensors.torch import load_file", 'tensors, members = load_file("model.safetensors"), []']
    for member, told in zip(model.members, _members(model), strict=True):
        prefix = told["prefix"]
        lines += [
            *_building(member, size),
            f"model.load_state_dict({{name[{len(prefix)}:]: x for name, x in tensors.items() if name.startswith({prefix!r})}})",
            f"members.append(({told['weight']!r}, torch.tensor({told['mean']}), torch.tensor({told['std']}), model.eval()))",
        ]
    return [
        *lines,
        "def model(x):  # RGB [N, 3, H, W] in [0, 1] -> logits",
        "    return sum(w * one((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)) for w, mean, std, one in members)",
    ]


def _building(classifier: Classifier, size: int) -> list[str]:
    """Lines that build one network as `model`, the first of them imports."""
    library, name = classifier.architecture.split("/", 1)
    classes = classifier.h.out_features
    if library == "shot":
        return shot_checkpoint.in_plain_torch(name, classes, classifier.f.netB)
    if library == "timm":
        more = f", img_size={size}" if _takes_img_size(name, size) else ""
        return ["import timm", f"model = timm.create_model({name!r}, pretrained=False, num_classes={classes}{more})"]
    more = f", image_size={size}" if name.startswith("vit_") else ""
    more += f", input_size=({size}, {size})" if name == "maxvit_t" else ""
    more += ", aux_logits=False, init_weights=True" if name in ("googlenet", "inception_v3") else ""
    return ["import torchvision", f"model = torchvision.models.get_model({name!r}, weights=None, num_classes={classes}{more})"]


def _takes_img_size(name: str, size: int) -> bool:
    import timm  # takes seconds to import: only where it is asked for

    try:
        with torch.device("meta"):
            timm.create_model(name, pretrained=False, num_classes=2, img_size=size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return False
    return True
