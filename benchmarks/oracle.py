"""The oracle: the source model fine-tuned on the labels of the target images, which no user has. An upper bound, and a
benchmark alone: it is no method of the engine, and the service cannot reach it.

    python -m benchmarks.oracle RUN --out DIR        RUN holds spec.json and run.json, as benchmarks/runs.py writes them

The same images, epochs and sizes of batches and crops as stage 2 of a method, drawn by names of its own; every weight is trained, the
last layer's too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from app.spec import AdaptationSpec
from worker.adaptation import device, evaluation, source_model
from worker.adaptation.data import read_evaluation, read_target
from worker.adaptation.device import to_device
from worker.adaptation.prefetch import prefetched
from worker.adaptation.randomness import batch, generator, seed_torch, steps_an_epoch
from worker.adaptation.transforms import apply, random_crops
from worker.adaptation.translator import replicate

LR = 1e-2
"""SOCKET's published rate, for every layer: labels allow more than a method without them dares."""
SMOOTHING = 0.1


def fine_tune(spec: AdaptationSpec, classes_of: dict[str, str], cache: Path) -> dict[str, Any]:
    """The row of results.jsonl: accuracy on the evaluation set, seconds, images a second."""
    where, input, s = device.choose(spec.device), spec.source_model.input, spec.settings.transfer
    classes = spec.source_model.classes
    images = read_target(spec.data, input, cache, emit=lambda _: None)
    held_out = read_evaluation(spec.data, classes, input, images, cache, emit=lambda _: None)
    labels = torch.tensor([classes.index(classes_of[name]) for name in images.names]).to(where)
    model = source_model.load(spec.source_model, Path(spec.source_model.uri)).to(where, memory_format=torch.channels_last)
    sgd = torch.optim.SGD(model.parameters(), LR, s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0)
    steps = s.epochs * steps_an_epoch(len(images), s.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: (1 + 10 * step / steps) ** -0.75)

    def make(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = batch(spec.seed, "oracle", step, len(images), s.batch_size)
        x = images.batch(index)
        crops = random_crops(generator(spec.seed, "oracle/crops", step), len(x), *x.shape[-2:], input.size)
        return apply(x, crops, input.size), torch.from_numpy(index)

    model.train()
    began, seen = time.monotonic(), 0
    for step, (x, index) in prefetched(make, range(steps)):
        seed_torch(spec.seed, "oracle", step)
        with device.autocast(where, "bf16" if spec.settings.precision == "bf16" else "fp32"):
            _, logits = model(replicate(to_device(x, where)))
        loss = F.cross_entropy(logits.float(), labels[index.to(where)], label_smoothing=SMOOTHING)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
        seen += len(x)
    spent = time.monotonic() - began
    model.eval()

    def predict(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model(replicate(x))

    _, logits = evaluation.predict(predict, held_out.images, input.size, where)
    found = evaluation.accuracy(logits, torch.from_numpy(held_out.labels), classes)
    _, on_target = evaluation.predict(predict, images, input.size, where)
    return {
        "held_out": {measure: found[measure] for measure in ("accuracy", "balanced_accuracy")},
        "transductive": None,  # it was trained on these labels
        "effective_classes": evaluation.evidence(on_target)["effective_classes"],
        "seconds": {"transferring": round(spent, 2)},
        "images_per_s": {"transferring": round(seen / spent, 1)},
        "verdict": None,
        "teacher_student_agreement": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    report = given.out / "artifacts/report.json"
    if report.is_file():
        return
    spec = AdaptationSpec.model_validate_json((given.run / "spec.json").read_bytes())
    classes_of = json.loads((given.run / "run.json").read_text())["classes_of"]
    cache = given.out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    document = fine_tune(spec, classes_of, cache)
    report.parent.mkdir(exist_ok=True)
    aside = report.with_suffix(".partial")
    aside.write_text(json.dumps(document))
    aside.replace(report)


if __name__ == "__main__":
    main()
