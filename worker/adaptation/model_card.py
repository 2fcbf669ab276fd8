"""model.json: what the published weights are, and how to use them with torch, torchvision or timm alone."""

from __future__ import annotations

from typing import Any

import torch

from worker.adaptation import shot_checkpoint
from worker.adaptation.image_sets import Images
from worker.adaptation.job import Adapted, Job
from worker.adaptation.scaling import no_reading_value
from worker.adaptation.source_model import Classifier


def describe(job: Job, adapted: Adapted, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """files: name, sha256 and bytes of `model` and, where there is one, `translator`."""
    source, input = job.spec.source_model, job.spec.source_model.input
    return {
        "format": "modalbridge-model/1",
        "architecture": source.architecture,
        "classes": list(source.classes),
        "head": job.source.head,
        "weights": files["model"] | {"dtype": "float32", "changed": adapted.classifier is not job.source},
        "translator": _translator(job, adapted, files),
        "input": input.model_dump(mode="json") | {"channels": 3},
        "sensor": sensor(job, job.target, adapted.translated),
        "load": loading(job.source, input.size),
        "method": job.spec.method,
        "seed": job.spec.seed,
        "settings": job.spec.settings.model_dump(mode="json"),
    }


def sensor(job: Job, target: Images, translated: bool) -> dict[str, Any]:
    """How a raw image of the sensor becomes the input."""
    reference, input, range = job.spec.data.target, job.spec.source_model.input, target.range
    no_reading = no_reading_value(reference.scaling, reference.modality)
    side = round(input.size / input.crop_ratio)
    steps = [
        f"Read {range.words}: x = clip(({'raw' if range.gain == 1 else f'raw * {range.gain:g}'} - low) / (high - low), 0, 1)."
    ]
    if no_reading is not None:
        steps.append(f"Raw value {no_reading} is no reading: fill it from its neighbours.")
    steps += [
        f"Resize, antialiased, {'both sides' if input.resize == 'stretch' else 'the shorter side'} to {side} pixels, "
        f"then cut out the centre {input.size} x {input.size}.",
        "Repeat the one channel three times." if target.array.shape[1] == 1 else "Keep the three channels.",
        "Subtract `mean` and divide by `std`, channel by channel.",
    ]
    if translated:
        steps[-2] = "Pass it through the translator, which gives RGB in [0, 1]."
    return {
        "modality": reference.modality,
        "channels": target.array.shape[1],
        "bits": range.bits,
        "gain": range.gain,
        "low": range.low,
        "high": range.high,
        "no_reading": no_reading,
        "steps": steps,
    }


def _translator(job: Job, adapted: Adapted, files: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    T = adapted.translator
    if T is None:
        return None
    needed = adapted.translated
    if not needed:
        note = "A by-product: the adapted model is fed x itself, not T(x)."
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


def loading(classifier: Classifier, size: int) -> list[str]:
    """A few lines of Python that load model.safetensors with the library and safetensors alone."""
    library, name = classifier.architecture.split("/", 1)
    classes = classifier.h.out_features
    if library == "shot":
        build = shot_checkpoint.in_plain_torch(name, classes, classifier.f.netB)
    elif library == "timm":
        more = f", img_size={size}" if _takes_img_size(name, size) else ""
        build = ["import timm", f"model = timm.create_model({name!r}, pretrained=False, num_classes={classes}{more})"]
    else:
        more = f", image_size={size}" if name.startswith("vit_") else ""
        more += f", input_size=({size}, {size})" if name == "maxvit_t" else ""
        more += ", aux_logits=False, init_weights=True" if name in ("googlenet", "inception_v3") else ""
        build = [
            "import torchvision",
            f"model = torchvision.models.get_model({name!r}, weights=None, num_classes={classes}{more})",
        ]
    return [
        f"{build[0]}; from safetensors.torch import load_file",
        *build[1:],
        'model.load_state_dict(load_file("model.safetensors"))',
        "model.eval()",
    ]


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
