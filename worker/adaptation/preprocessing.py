"""preprocessing.json: how a raw image of the sensor becomes what each published file takes, step by step, for programs."""

from __future__ import annotations

from typing import Any

from app.spec import FORMATS, AdaptationSpec, Format, InputSpec, TargetReference
from worker.adaptation.image_sets import Images
from worker.adaptation.job import Adapted, Job
from worker.adaptation.scaling import Range, readings_of

Step = dict[str, Any]


def describe(job: Job, adapted: Adapted, outputs: dict[Format, dict[str, Any]]) -> dict[str, Any]:
    """outputs: what became of each, as `report.outputs` has it. `after` of an input names the last step to be done for it: what
    follows, the file does itself."""
    todo = steps(job, adapted.translated)
    size, channels = job.spec.source_model.input.size, job.target.array.shape[1]
    inputs = []
    for output in (output for output, told in outputs.items() if told["published"]):
        inside = in_graph(job.spec, adapted) if output != "safetensors" else frozenset()
        shape = ["batch", channels if "translate" in inside else 3, size, size]
        after = [step["step"] for step in todo if step["step"] not in inside][-1]
        inputs.append({"file": FORMATS[output], "name": "images", "dtype": "float32", "shape": shape, "after": after})
    return {"format": "modalbridge-preprocessing/1", "modality": job.spec.data.target.modality, "steps": todo, "inputs": inputs}


def in_graph(spec: AdaptationSpec, adapted: Adapted) -> frozenset[str]:
    """The steps that torch_export and onnx do themselves. A model behind its translator cannot leave `normalize` to the caller;
    several source models have no such step, as each has a mean and std of its own."""
    if adapted.translated:
        return frozenset({"translate", "normalize"})
    return frozenset({"normalize"} if spec.export.normalize_in_graph else ())


def steps(job: Job, translated: bool) -> list[Step]:
    """In the order in which they are done. Each has its name (`step`), its numbers, and the same in words."""
    return steps_of(job.target, job.spec.data.target, job.spec.source_model.input, len(job.source.members), translated)


def steps_of(target: Images, reference: TargetReference, input: InputSpec, source_models: int, translated: bool) -> list[Step]:
    range, channels = target.range, target.array.shape[1]
    side = round(input.size / input.crop_ratio)
    found = [_read(range, channels)]
    readings = readings_of(reference.scaling, reference.modality)
    if readings.no_reading is not None:
        negative = "" if readings.below_zero else ", nor is one below 0"
        words = f"Raw value {readings.no_reading} is no reading{negative}: fill it from its neighbours."
        found.append({"step": "fill", "no_reading": readings.no_reading, "words": words})
    found += _resize(side, stretch=input.resize == "stretch")
    found += [
        {"step": "round", "words": "Round to whole numbers."},
        _crop(input.size),
        {
            "step": "rescale",
            "low": range.low,
            "high": range.high,
            "words": f"{range.words}: x = clip((x - low) / (high - low), 0, 1).",
        },
    ]
    if translated:
        words = "Pass it through the translator, which gives RGB in [0, 1]."
        found.append({"step": "translate", "file": "translator.safetensors", "words": words})
    elif channels == 1:
        found.append({"step": "repeat_channels", "channels": 3, "words": "Repeat the one channel three times."})
    if source_models == 1:
        words = "Subtract `mean` and divide by `std`, channel by channel."
        found.append({"step": "normalize", "mean": list(input.mean), "std": list(input.std), "words": words})
    return found


def _read(range: Range, channels: int) -> Step:
    kind = {8: "8-bit", 16: "16-bit"}[range.bits]
    minus = "" if range.offset == 0 else f", minus {range.offset:g}"
    times = "" if range.gain == 1 else f", times {range.gain:g}"
    cut = "" if range.offset == 0 else ", cut to 0 to 65535"
    words = f"Read {channels} channel{'s' if channels > 1 else ''} of raw values{minus}{times}{cut}, as {kind} numbers."
    return {"step": "read", "channels": channels, "bits": range.bits, "offset": range.offset, "gain": range.gain, "words": words}


def _resize(side: int, stretch: bool) -> list[Step]:
    how = {"interpolation": "bilinear", "antialias": True}
    if stretch:
        return [
            {
                "step": "resize",
                "height": side,
                "width": side,
                **how,
                "words": f"Resize, antialiased, both sides to {side} pixels.",
            }
        ]
    words = f"Resize, antialiased, the shorter side to {side} pixels."
    return [{"step": "resize", "shorter_side": side, **how, "words": words}, _crop(side)]


def _crop(side: int) -> Step:
    return {"step": "center_crop", "height": side, "width": side, "words": f"Cut out the centre {side} x {side}."}
